"""The secret key of a redaction, and what is derived from it."""

import hmac
from hashlib import sha256
from pathlib import Path

from medvllm import settings
from medvllm.errors import SettingError

SHORTEST_KEY = 16  # bytes; a shorter key can be guessed


def read_key() -> bytes | None:
    """Return the key in the file of MEDVLLM_REDACTION_KEY_FILE, without white space around it; None if there is none.

    Raises:
        SettingError: The file cannot be read, or the key is too short.
    """
    file = settings.REDACTION_KEY_FILE()
    return None if file is None else read_key_file(file, settings.REDACTION_KEY_FILE.name)


def read_key_file(file: Path, name: str) -> bytes:
    """Return the key in a file, without white space around it.

    Args:
        file: The file.
        name: What names it, such as a setting.

    Raises:
        SettingError: The file cannot be read, or the key is too short.
    """
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise SettingError(
            f"The key file {str(file)!r} of {name} cannot be read: {error.strerror}.\n"
            f"Make one with: openssl rand -hex 32 > {file}",
            setting=name,
            file=str(file),
        ) from error
    if len(key) < SHORTEST_KEY:
        raise SettingError(
            f"The key in {str(file)!r} has {len(key)} bytes; it needs {SHORTEST_KEY} or more.\n"
            f"Make one with: openssl rand -hex 32 > {file}",
            setting=name,
            file=str(file),
        )
    return key


def derive(key: bytes, *parts: str) -> bytes:
    """Return 32 bytes that only the holder of the key can compute: an HMAC-SHA-256 over the parts."""
    content = b"".join(b"%d:%s" % (len(part), part) for part in (part.encode() for part in parts))
    return hmac.new(key, content, sha256).digest()


def derive_number(key: bytes, *parts: str) -> int:
    """Return a whole number of 64 bits, derived in the same way."""
    return int.from_bytes(derive(key, *parts)[:8])
