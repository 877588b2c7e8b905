"""A file that remembers surrogates from one call to the next, without the texts that they stand for."""

import hmac
import json
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medvllm.engine.model_runner.redaction.keys import derive
from medvllm.errors import MedVLLMError, OutputError, RequestError
from medvllm.file_lock import file_lock
from medvllm.files import write_whole

_FORMAT = 1


class Vaults(ExitStack):
    """The vaults of a call. Each is open once, until the end of the call.

    Other processes and threads wait for a vault that is open. At the end it appears whole or not at all, readable by
    its owner only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[Path, tuple[bytes, MutableMapping[str, str]]] = {}

    def open(self, file: Path, key: bytes) -> MutableMapping[str, str]:
        """Return the surrogates in a vault, by the HMACs of their sources. What is added is saved.

        Args:
            file: The vault. If it does not exist, it is created.
            key: The key that it was made with. Another key would give every name a second surrogate.

        Raises:
            RequestError: The file is not a vault, or was made with another key.
            OutputError: The file cannot be read or written.
        """
        place = file.expanduser().resolve()
        if place not in self._opened:
            self._opened[place] = key, self.enter_context(_open(place, key))
        made_with, surrogates = self._opened[place]
        if made_with != key:
            raise _other_key(place)
        return surrogates


@contextmanager
def _open(file: Path, key: bytes) -> Iterator[MutableMapping[str, str]]:
    check = derive(key, "vault").hex()
    try:
        with file_lock(file.with_name(f"{file.name}.lock")):
            before = _read(file, check)
            surrogates = dict(before)
            yield surrogates
            if surrogates != before:
                content = {"format": _FORMAT, "check": check, "surrogates": surrogates}
                write_whole(file, json.dumps(content, indent=1).encode(), private=True)
    except OSError as error:
        if isinstance(error, MedVLLMError):
            raise
        raise OutputError(
            f"The vault {str(file)!r} cannot be used: {error.strerror}.\nChoose another path: vault=", path=str(file)
        ) from error


def _read(file: Path, check: str) -> dict[str, str]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    content = content if isinstance(content, dict) else {}
    surrogates = content.get("surrogates")
    if not isinstance(surrogates, dict) or content.get("format") != _FORMAT:
        raise RequestError(f"The file {str(file)!r} is not a vault of surrogates.", option="vault", value=str(file))
    if not hmac.compare_digest(str(content.get("check")), check):
        raise _other_key(file)
    return surrogates


def _other_key(file: Path) -> RequestError:
    return RequestError(
        f"The vault {str(file)!r} was made with another key or seed.\nGive its own, or another path: vault=",
        option="vault",
        value=str(file),
    )
