"""Texts that are written over so that the holder of a key can read them back."""

import base64
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.redaction.keys import derive
from medvllm.engine.model_runner.redaction.operators import Found, Operator
from medvllm.errors import MissingDependencyError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Encrypt(Operator):
    """Writes a text encrypted and signed: a Fernet token. Equal texts have different ones.

    Args:
        key: The secret from which the key of the tokens is derived.
    """

    type = "encrypt"

    def __init__(self, key: bytes) -> None:
        self._fernet = _fernet(derive(key, "encrypt"))

    def write(self, found: Found) -> str:
        """Return the new text."""
        return self._fernet.encrypt(found.source.encode()).decode()

    def read(self, token: str) -> str | None:
        """Return the text of a token; None if this key wrote no such token."""
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(token.encode()).decode()
        except InvalidToken:
            return None


def _fernet(key: bytes) -> "Fernet":
    try:
        from cryptography.fernet import Fernet
    except ImportError as error:
        raise MissingDependencyError(
            "encrypt and decrypt need a package that is not installed.\nInstall it with: pip install cryptography",
            package="cryptography",
        ) from error
    return Fernet(base64.urlsafe_b64encode(key))
