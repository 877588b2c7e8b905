"""A file that remembers surrogates from one call to the next, without the texts that they stand for."""

import hmac
import json
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from medvllm.engine.model_runner.redaction.keys import derive
from medvllm.errors import OutputError, RequestError
from medvllm.file_lock import file_lock
from medvllm.files import write_whole

_FORMAT = 1


@contextmanager
def open_vault(file: Path, key: bytes) -> Iterator[MutableMapping[str, str]]:
    """Yield the surrogates in a vault, by the HMACs of their sources, and save the vault at the end of the block.

    Other processes and threads wait for the block. The file appears whole or not at all, readable by its owner only.

    Args:
        file: The vault. If it does not exist, it is created.
        key: The key that it was made with. Another key would give every name a second surrogate.

    Raises:
        RequestError: The file is not a vault, or was made with another key.
        OutputError: The file cannot be read or written.
    """
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
    surrogates = content.get("surrogates") if isinstance(content, dict) else None
    if not isinstance(surrogates, dict) or content["format"] != _FORMAT:
        raise RequestError(f"The file {str(file)!r} is not a vault of surrogates.", option="vault", value=str(file))
    if not hmac.compare_digest(str(content.get("check")), check):
        raise RequestError(
            f"The vault {str(file)!r} was made with another key.\nGive its key, or another path: vault=",
            option="vault",
            value=str(file),
        )
    return surrogates
