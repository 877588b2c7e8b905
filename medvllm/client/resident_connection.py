"""A connection to a server of this user, which shows first that it has the key of its record."""

import hmac
import secrets
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from medvllm.api_keys import prove
from medvllm.client import faults
from medvllm.client.call import Call
from medvllm.client.connection import Answer, LostError, Request
from medvllm.client.exchange import Exchange
from medvllm.client.local_connection import LocalConnection

_ANSWER_S = 2.0  # until a server counts as one that hangs; less than a load takes, also on a busy machine
_KEY = "Authorization"


class ResidentConnection(LocalConnection):
    """A connection on which neither the key nor a text is sent before the server has shown that it has the key.

    Another process may have taken the port of a server that has ended, also between two requests.

    Args:
        url: The address of the server.
        options: As for `LocalConnection`.
        key: The key of the server's record.
    """

    def __init__(self, url: str, options: Mapping[str, Any], key: str) -> None:
        super().__init__(options)
        self._url, self._key = url, key

    def send(self, request: Request) -> Answer:
        """Send a request, and return its answer once its head is there.

        Raises:
            LostError: There is no answer.
            MedVLLMError: The server has not the key of its record.
        """
        if not self.is_open:
            self.greet()
        return super().send(request)

    def greet(self) -> None:
        """Connect, and have the server show that it has the key. Raises: as `send`."""
        nonce = secrets.token_hex(32)
        asked = Call("POST", "/v1/identity", lambda content: str(content["proof"]), {"nonce": nonce}, _ANSWER_S)
        exchange, lost = Exchange(self._url, asked, _ANSWER_S), None
        others = {name: value for name, value in self.headers.items() if name != _KEY}
        is_own = False
        try:
            with closing(self._ask(exchange.request(), others)) as answer:
                body = b"".join(exchange.in_time(answer.parts()))
            exchange.judge(answer.status, answer.headers, body)
            is_own = exchange.wait_s is None and _is_equal(exchange.read(body), prove(self._key, nonce))
        except LostError as error:
            lost = LostError("silent") if error.why == "too late" else error
        finally:
            if not is_own:
                self.close()
        if lost is not None:
            raise lost
        if not is_own:
            raise faults.another(self._url)
        if not self.is_open:  # the next request would open another one
            raise LostError("hung up")


def _is_equal(proof: str, expected: str) -> bool:
    return hmac.compare_digest(proof.encode(), expected.encode())
