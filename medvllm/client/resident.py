"""Finds a server of this user that answers as this process would."""

import hmac
import logging
import secrets

from medvllm.api_keys import prove
from medvllm.client.call import Call
from medvllm.client.conditions import current_conditions
from medvllm.client.local_client import LocalClient
from medvllm.client.server_record import ServerRecord, read_records
from medvllm.errors import MedVLLMError

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0  # until a server counts as one that hangs; less than a load takes, also on a busy machine


class ResidentClient(LocalClient):
    """A client of a server of this user.

    Args:
        record: The record of the server.
    """

    def __init__(self, record: ServerRecord) -> None:
        super().__init__(record.url, api_key=record.key)
        self.process = record.process
        self._key = record.key
        self._authorization = self._options["headers"].pop("Authorization")

    def greet(self) -> bool:
        """Return whether the server has the key of its record. Only then is the key sent, and any text.

        Another process may have taken the port of a server that has ended.
        """
        nonce = secrets.token_hex(32)
        asked = Call("POST", "/v1/identity", lambda content: str(content["proof"]), {"nonce": nonce}, _ANSWER_S)
        is_own = hmac.compare_digest(self._send(asked).encode(), prove(self._key, nonce).encode())
        if is_own:
            self._connection().headers["Authorization"] = self._authorization
        return is_own


def find_resident(*, needs_same_answers: bool = True) -> ResidentClient | None:
    """Return a client of a server of this user that answers; None if there is none.

    A server of another version, catalogue or setting is not used, because a name may mean another model there.

    Args:
        needs_same_answers: Whether it must be one that answers as this process would.
    """
    try:
        records, conditions = list(read_records()), ""
        if records and needs_same_answers:
            conditions = current_conditions()
    except (OSError, MedVLLMError) as error:
        logger.info("no server is used: %s", error)
        return None
    for record in records:
        if needs_same_answers and record.conditions != conditions:
            logger.info("the server at %s has another version, catalogue or setting", record.url)
            continue
        client = ResidentClient(record)
        try:
            if client.greet():
                return client
            logger.info("the server at %s is not the one of its record", record.url)
        except MedVLLMError as error:
            logger.info("the server at %s is not used: %s", record.url, error)
        client.close()
    return None
