"""A request to the server, as a person copies it to a terminal or a program."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A request.

    Attributes:
        address: The address of the route.
        body: What is sent as JSON.
        needs_key: Whether the server asks for an API key.
    """

    address: str
    body: Mapping[str, Any]
    needs_key: bool

    def as_curl(self) -> str:
        """Return the command for a shell."""
        lines = [f"curl {shlex.quote(self.address)}", "-H 'Content-Type: application/json'"]
        if self.needs_key:
            lines.append('-H "Authorization: Bearer $MEDVLLM_API_KEY"')
        lines.append(f"-d {shlex.quote(json.dumps(self.body, ensure_ascii=False))}")
        return " \\\n  ".join(lines)

    def as_python(self) -> str:
        """Return the lines for Python."""
        body = json.dumps(self.body, ensure_ascii=False, indent=4)  # texts, numbers and lists: Python reads it, too
        headers = ""
        if self.needs_key:
            headers = '    headers={"Authorization": f"Bearer {os.environ[\'MEDVLLM_API_KEY\']}"},\n'
        imports = "import os\n\nimport httpx2" if self.needs_key else "import httpx2"
        indented = body.replace("\n", "\n    ")
        return (
            f"{imports}\n\nanswer = httpx2.post(\n    {self.address!r},\n{headers}    json={indented},\n"
            "    timeout=300,\n)\nanswer.raise_for_status()\nprint(answer.json())"
        )
