"""A request to the server, as a person copies it to a terminal or a program."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from medvllm.server.page.client_calls import ClientCall


class Call(NamedTuple):
    """A request.

    Attributes:
        url: The address of the server.
        route: The route.
        body: What is sent as JSON.
        client_call: The same for `medvllm.client`.
        needs_key: Whether the server asks for an API key.
    """

    url: str
    route: str
    body: Mapping[str, Any]
    client_call: ClientCall
    needs_key: bool

    def as_curl(self) -> str:
        """Return the command for a shell. The body is a here-document: an argument may have 128 KiB only."""
        words = [f"curl {shlex.quote(self.url + self.route)}", "-H 'Content-Type: application/json'"]
        if self.needs_key:
            words.append('-H "Authorization: Bearer $MEDVLLM_API_KEY"')
        body = _without_controls(json.dumps(self.body, ensure_ascii=False, indent=2))  # it has no line "END"
        return " \\\n  ".join([*words, f"-d @- <<'END'\n{body}\nEND"])

    def as_python(self) -> str:
        """Return the lines for Python."""
        return self.client_call.as_python(self.url, self.body["model"])


def _without_controls(text: str) -> str:
    """Return a JSON text in which characters that a terminal could obey, or that nobody sees, are escaped."""
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1] for character in text
    )
