"""The recipes of this process by identity: the least recently used go when they take too much memory."""

from collections import OrderedDict
from typing import Any

from medvllm.forking import Lock
from medvllm.loading.recipe import NoRecipe, Recipe
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources import Snapshot

Origin = tuple[Any, ...]


def origin(metadata: ModelMetadata, snapshot: Snapshot) -> Origin:
    """Return what a model is made of beside its identity: the facts of its entry, and its files by digest."""
    return metadata, snapshot.path, snapshot.files, snapshot.converted


class Recipes:
    """The recipes of at most `most` identities and `most_bytes` bytes; safe between threads."""

    def __init__(self, most: int = 1_000, most_bytes: int = 256 << 20) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._lock = Lock()  # guards the two below
        self._kept: OrderedDict[Identity, tuple[Origin, Recipe]] = OrderedDict()
        self._size_bytes = 0

    def find(self, identity: Identity, origin: Origin) -> Recipe | None:
        """Return the recipe of an identity; one of other files or facts is dropped."""
        with self._lock:
            kept = self._kept.get(identity)
            if kept is not None and kept[0] == origin:
                self._kept.move_to_end(identity)
                return kept[1]
            self._drop(identity)
        return None

    def keep(self, identity: Identity, origin: Origin, recipe: Recipe | NoRecipe) -> None:
        """Keep a recipe in place of the one that was there; without one, that is dropped."""
        with self._lock:
            self._drop(identity)
            if isinstance(recipe, NoRecipe):
                return
            self._kept[identity] = origin, recipe
            self._size_bytes += recipe.size_bytes
            while len(self._kept) > self._most or self._size_bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, identity: Identity) -> None:
        if (kept := self._kept.pop(identity, None)) is not None:
            self._size_bytes -= kept[1].size_bytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)


recipes = Recipes()
