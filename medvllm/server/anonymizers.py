"""What Presidio calls anonymizers: the operators of a redaction, and those that only Presidio has."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm.engine.model_runner.redaction.operators import (
    DEFAULT,
    Found,
    Operator,
    Operators,
    check_label,
    check_options,
    parse_operators,
)
from medvllm.server.encryption import Encrypt
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.redaction_keys import find_key, use_server_keys

_HASH_LENGTH = 64  # hexadecimal digits of a SHA-256, which is what clients have room for


class Label(Operator):
    """Writes the type of the entity in angle brackets."""

    type = "replace"

    def write(self, found: Found) -> str:
        """Return the new text."""
        return f"<{found.label}>"


@dataclass
class PartMask(Operator):
    """Writes a character over the first or the last characters of a text.

    Attributes:
        masking_char: The character.
        chars_to_mask: Over how many.
        from_end: Whether over the last ones.
    """

    type = "mask"
    masking_char: str
    chars_to_mask: int
    from_end: bool

    def write(self, found: Found) -> str:
        """Return the new text."""
        count = min(self.chars_to_mask, len(found.source))
        mask, kept = self.masking_char * count, len(found.source) - count
        return found.source[:kept] + mask if self.from_end else mask + found.source[count:]


def parse_anonymizers(given: Mapping[str, Mapping[str, Any]], keys: Mapping[str, Path]) -> Operators:
    """Return the operators that a client of Presidio asks for. Types of entities without one are replaced.

    A hash is one with a key of the server: others can be reversed with a list of names. So is an encryption.

    Args:
        given: The anonymizer of each type of entity, and of "DEFAULT".
        keys: The files of the server's keys by their names.

    Raises:
        ProblemError: The server has no such key, or an option cannot be used.
        RequestError: There is no such operator or option.
        SettingError: The file of a key cannot be read.
    """
    own: dict[str, Operator] = {}
    others: dict[str, dict[str, Any]] = {}
    for label, anonymizer in given.items():
        check_label(label)
        kind, options = _read(anonymizer)
        if kind == "replace" and "new_value" not in options:
            check_options(kind, options, ("new_value",))
            own[label] = Label()
        elif kind == "mask":
            own[label] = _parse_mask(label, options)
        elif kind == "encrypt":
            own[label] = Encrypt(_find_key(f"anonymizers.{label}", kind, options, keys))
        elif kind == "hash" and options.get("hash_type", "sha256") == "sha256":
            options.pop("hash_type", None)
            others[label] = {"type": "hash", "length": _HASH_LENGTH, **options}
        else:
            others[label] = {"type": kind, **options}
    default = own.pop(DEFAULT, None) if DEFAULT not in others else None
    parsed = parse_operators(use_server_keys(others, keys, param="anonymizers"))
    return Operators({**parsed.by_label, **own}, parsed.default if DEFAULT in others else default or Label())


def parse_deanonymizers(
    given: Mapping[str, Mapping[str, Any]], keys: Mapping[str, Path]
) -> Mapping[str, Encrypt | None]:
    """Return what reads back the texts of each type of entity, and of "DEFAULT"; None for what stays as it is.

    Args:
        given: The deanonymizers.
        keys: The files of the server's keys by their names.

    Raises:
        ProblemError: The server has no such key, or there is no such deanonymizer.
        RequestError: There is no such option.
        SettingError: The file of a key cannot be read.
    """
    found: dict[str, Encrypt | None] = {}
    for label, deanonymizer in given.items():
        kind, options = _read(deanonymizer)
        param = f"deanonymizers.{label}"
        if kind == "decrypt":
            found[label] = Encrypt(_find_key(param, kind, options, keys))
        elif kind in ("keep", "deanonymize_keep"):
            check_options(kind, options, ())
            found[label] = None
        else:
            message = (
                "Only what encrypt wrote can be read back: replace, redact, mask and hash leave nothing of a text.\n"
                "Use one of: {'type': 'decrypt', 'key': NAME}, {'type': 'deanonymize_keep'}"
            )
            raise ProblemError(Problem(422, "unsupported_option", message, param))
    return found


def _read(given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the type of an operator and its options. A null stands for what is left out."""
    return given.get("type"), {name: value for name, value in given.items() if name != "type" and value is not None}


def _find_key(param: str, kind: str, options: Mapping[str, Any], keys: Mapping[str, Path]) -> bytes:
    check_options(kind, options, ("key",))
    return find_key(options.get("key"), keys, what=repr(kind), param=param)


def _parse_mask(label: str, options: Mapping[str, Any]) -> PartMask:
    names = ("masking_char", "chars_to_mask", "from_end")
    check_options("mask", options, names)
    character, count, from_end = (options.get(name) for name in names)
    is_character = isinstance(character, str) and len(character) == 1 and character.isprintable()
    if not is_character or type(count) is not int or count < 0 or not isinstance(from_end, bool | None):
        message = (
            f"The anonymizer of {label!r} needs a masking_char, which is one character, and chars_to_mask, a number."
            "\nWrite it as: {'type': 'mask', 'masking_char': '*', 'chars_to_mask': 100, 'from_end': false}"
        )
        raise ProblemError(Problem(422, "invalid_request", message, f"anonymizers.{label}"))
    assert isinstance(character, str)
    return PartMask(character, count, bool(from_end))
