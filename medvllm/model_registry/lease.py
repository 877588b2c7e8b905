"""A lease: a model that stays in memory for the duration of a `with` block."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from medvllm.errors import RequestError
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata
from medvllm.model_cache import CachedModel
from medvllm.options import Identity
from medvllm.receipt import Receipt
from medvllm.sources.sentence import Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medvllm.engines.vector_modules import Modules


class Lease:
    """A model that stays in memory for the duration of a `with` block, as `registry.lease` gives it.

    After the block, `model` raises RequestError: its memory may be needed for another one.

    Attributes:
        metadata: The entry, completed with what the files say.
        size_bytes: The bytes of the model's parameters and buffers; those of an adapter without its base's.
        engine: For the receipt, which engine was asked for and why torch computes. None otherwise.
    """

    engine: dict[str, Any] | None = None

    def __init__(
        self,
        metadata: ModelMetadata,
        cached: CachedModel[Identity],
        tokenizer: "Callable[[], PreTrainedTokenizerBase]",
        modules: "Callable[[], Modules]",
        scoring: Callable[[], Scoring | None],
        receipt: Callable[[Any], Receipt],
        free_bytes: Callable[[str], int | None],
    ) -> None:
        self.metadata = metadata
        self.size_bytes = cached.size_bytes
        self._cached: CachedModel[Identity] | None = cached
        self._load_tokenizer, self._load_modules, self._read_scoring = tokenizer, modules, scoring
        self._make_receipt = receipt
        self._device, self._find_free_bytes = cached.device, free_bytes

    def __repr__(self) -> str:
        return f"Lease({self.metadata.name!r}{'' if self._cached else ', ended'})"

    @property
    def model(self) -> Any:
        """The model, in eval mode. Typed Any: which methods it has depends on its class."""
        if self._cached is None:
            raise RequestError(
                f"The lease of model {self.metadata.name!r} has ended.\nUse the model inside the with block."
            )
        return self._cached.model

    @lazy
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the same files, loaded on first use. Threads can share it."""
        return self._load_tokenizer()

    @lazy
    def modules(self) -> "Modules":
        """The modules that a sentence-transformers folder puts behind its pooling, loaded on first use.

        Raises:
            LoadError: The folder declares vectors that cannot be made.
        """
        return self._load_modules()

    @lazy
    def scoring(self) -> Scoring | None:
        """What the files declare about the scores of a cross-encoder, or None if they do not say that it is one."""
        return self._read_scoring()

    @lazy
    def receipt(self) -> Receipt:
        """What exactly answers, and how each fact of it is known. The tokenizer is loaded for it."""
        receipt = self._make_receipt(self.model)
        return receipt if self.engine is None else replace(receipt, engine=self.engine)

    def free_bytes(self) -> int | None:
        """Return the bytes that the memory budget of the model's device has left; None without a budget."""
        return self._find_free_bytes(self._device)

    def __reduce__(self) -> str:
        raise RequestError(
            f"A lease of model {self.metadata.name!r} belongs to one process: it cannot be pickled or copied.\n"
            f"Send the name, and lease it there: with registry.lease({self.metadata.name!r}) as lease:"
        )

    def end(self) -> None:
        """End the lease: drop the model."""
        self._cached = None


class Leasing(AbstractContextManager[Lease]):
    """What `registry.lease` returns before the `with` block: entering it starts the lease."""

    def __init__(self, name: str, manager: AbstractContextManager[Lease]) -> None:
        self._name, self._manager = name, manager

    def __enter__(self) -> Lease:
        return self._manager.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._manager.__exit__(kind, error, traceback)

    if not TYPE_CHECKING:

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            raise RequestError(
                f"A lease of model {self._name!r} starts with a `with` block: it has no {attribute!r} before.\n"
                f"Use: with registry.lease({self._name!r}) as lease:"
            )
