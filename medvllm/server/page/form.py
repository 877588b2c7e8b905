"""What a form of the page sends."""

from collections.abc import Mapping
from urllib.parse import parse_qsl

from fastapi import Request

from medvllm.server.body import parse
from medvllm.server.problem import Problem, ProblemError

_MAX_FIELDS = 50


class Form:
    """The fields of a form. A field that was not sent is empty.

    Args:
        fields: Their values. Browsers send a line break as CR LF, and count it as one character: here it is LF.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in fields.items()}

    def text(self, name: str) -> str:
        """Return a field as it is."""
        return self._fields.get(name, "")

    def lines(self, name: str) -> list[str]:
        """Return the lines of a field that are not blank."""
        return [line for line in self.text(name).split("\n") if line.strip()]

    def filled(self, defaults: Mapping[str, str]) -> "Form":
        """Return the form with defaults in the fields that are empty."""
        return Form(self._fields | {name: value for name, value in defaults.items() if not self.text(name).strip()})

    def number(self, name: str) -> float:
        """Return the number in a field. ProblemError: it is no number."""
        try:
            return float(self.text(name))
        except ValueError:
            raise ProblemError(Problem(422, "invalid_request", f"{name}: it must be a number.", name)) from None

    def count(self, name: str) -> int:
        """Return the whole number in a field. ProblemError: it is none."""
        number = self.number(name)
        if not number.is_integer():
            raise ProblemError(Problem(422, "invalid_request", f"{name}: it must be a whole number.", name))
        return int(number)


async def read_form(http: Request) -> Form:
    """Return the form in the body of a request. ProblemError: the body is none."""
    try:
        return Form(await parse(await http.body(), _parse))
    except ValueError:  # also of an encoding
        raise ProblemError(Problem(400, "invalid_form", "The body is not a form in UTF-8.")) from None


def _parse(body: bytes) -> dict[str, str]:
    return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS))
