"""The API keys that a server accepts: those of the catalogue, and those of MEDVLLM_API_KEYS."""

import asyncio
import copy
import hmac
import time
from collections import Counter
from typing import TYPE_CHECKING

from medvllm import settings
from medvllm.api_keys import ApiKey, digest_of
from medvllm.errors import MedVLLMError

if TYPE_CHECKING:
    from medvllm.model_registry import ModelRegistry

_KEPT_S = 2.0  # a revoked key may be accepted for so long


class Keyring:
    """Finds the key that a client presents, and counts the requests of each key.

    Args:
        registry: Its catalogue has the keys.
        own_key: The key with which commands of the server's user may do all; None for none.
    """

    def __init__(self, registry: "ModelRegistry", own_key: str | None = None) -> None:
        self._registry = registry
        self._own_digest = None if own_key is None else digest_of(own_key)
        self._keys: list[ApiKey] = []
        self._error: MedVLLMError | None = None  # why they cannot be read
        self._read_at = -_KEPT_S
        self._reading = asyncio.Lock()  # one request reads for all
        self.open_requests: Counter[str] = Counter()  # by the name of their key; only the event loop changes it

    def is_own(self, presented: str | None) -> bool:
        """Return whether a client presents the key of the server's user."""
        if presented is None or self._own_digest is None:
            return False
        return hmac.compare_digest(self._own_digest, digest_of(presented))

    async def find(self, presented: str) -> ApiKey | None:
        """Return the key that a client presents, or None if it is not accepted.

        Raises:
            CatalogError: The keys cannot be read. No key is accepted meanwhile.
        """
        async with self._reading:
            if time.monotonic() - self._read_at >= _KEPT_S:
                try:
                    self._keys, self._error = await asyncio.to_thread(read_keys, self._registry), None
                except MedVLLMError as error:  # kept, too: a database that is gone may take long to say so
                    self._error = error
                self._read_at = time.monotonic()
            if self._error is not None:
                raise copy.copy(self._error)
        digest, found = digest_of(presented), None
        for key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if found is not None and found.is_valid else None


def read_keys(registry: "ModelRegistry") -> list[ApiKey]:
    """Return all keys of the catalogue and of the settings, also those that are no longer valid."""
    return [*settings.API_KEYS(), *registry.catalog.keys.list()]
