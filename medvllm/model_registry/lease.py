"""A lease: a model that stays in memory for the duration of a `with` block."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from medvllm.errors import RequestError
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata
from medvllm.model_cache import CachedModel
from medvllm.names import parse_name
from medvllm.options import Identity
from medvllm.receipt import Receipt
from medvllm.sources.sentence import Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medvllm.engines.vector_modules import Modules
    from medvllm.model_registry.resolver import LoadTarget

    class Lent(Protocol):
        """What a call means, as its lease shows it."""

        @property
        def metadata(self) -> ModelMetadata: ...
        @property
        def identity(self) -> Identity: ...
        @property
        def scoring(self) -> Scoring | None: ...

    T_contra = TypeVar("T_contra", bound=Lent, contravariant=True)

    class Lender(Protocol[T_contra]):
        """What lends models, and reads what belongs to them."""

        def release(self, cached: CachedModel[Identity]) -> None: ...
        def tokenizer_of(self, target: T_contra, /) -> PreTrainedTokenizerBase: ...
        def modules_of(self, target: T_contra, /) -> Modules: ...
        def receipt_of(self, target: T_contra, model: Any, size_bytes: int, /) -> Receipt: ...
        def free_bytes(self, device: str) -> int | None: ...

    class Loader(Lender[LoadTarget], Protocol):
        """A lender that loads what it lends: the session of a registry."""

        def acquire(
            self, name: "str | os.PathLike[str]", options: Mapping[str, Any], *, lease: bool, keep_alive: Any
        ) -> tuple[LoadTarget, CachedModel[Identity]]: ...


class Lease:
    """A model that stays in memory for the duration of a `with` block, as `registry.lease` gives it.

    After the block, `model` raises RequestError: its memory may be needed for another one.

    Attributes:
        size_bytes: The bytes of the model's parameters and buffers; those of an adapter without its base's.
        engine: For the receipt, what was asked for and why torch, or another precision, computes. None otherwise.
    """

    engine: dict[str, Any] | None = None

    def __init__(self, target: "T_contra", cached: CachedModel[Identity], lender: "Lender[T_contra]") -> None:
        # Each request leases a model, so little is done here.
        self._target: Lent = target
        self._lender: Lender[Any] = lender
        self._cached: CachedModel[Identity] | None = cached
        self.size_bytes = cached.size_bytes

    def __repr__(self) -> str:
        return f"Lease({self.metadata.name!r}{'' if self._cached else ', ended'})"

    @property
    def metadata(self) -> ModelMetadata:
        """The entry, completed with what the files say."""
        return self._target.metadata

    @property
    def _present(self) -> CachedModel[Identity]:
        if self._cached is None:
            raise RequestError(
                f"The lease of model {self.metadata.name!r} has ended.\nUse the model inside the with block."
            )
        return self._cached

    @property
    def model(self) -> Any:
        """The model, in eval mode. Typed Any: which methods it has depends on its class."""
        return self._present.model

    @property
    def identity(self) -> Identity:
        """What tells the model from others: its version, its files, and the options of its load."""
        return self._present.identity

    @lazy
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the same files, loaded on first use. Threads can share it."""
        return self._lender.tokenizer_of(self._target)

    @lazy
    def modules(self) -> "Modules":
        """The modules that a sentence-transformers folder puts behind its pooling, loaded on first use.

        Raises:
            LoadError: The folder declares vectors that cannot be made.
        """
        return self._lender.modules_of(self._target)

    @lazy
    def scoring(self) -> Scoring | None:
        """What the files declare about the scores of a cross-encoder, or None if they do not say that it is one."""
        return self._target.scoring

    @lazy
    def receipt(self) -> Receipt:
        """What exactly answers, and how each fact of it is known. The tokenizer is loaded for it."""
        receipt = self._lender.receipt_of(self._target, self.model, self.size_bytes)
        return receipt if self.engine is None else replace(receipt, engine=(receipt.engine or {}) | self.engine)

    def free_bytes(self) -> int | None:
        """Return the bytes that the memory budget of the model's device has left; None without a budget."""
        return self._lender.free_bytes(str(self._target.identity.options.device))

    def __reduce__(self) -> str:
        raise RequestError(
            f"A lease of model {self.metadata.name!r} belongs to one process: it cannot be pickled or copied.\n"
            f"Send the name, and lease it there: with registry.lease({self.metadata.name!r}) as lease:"
        )

    def end(self) -> None:
        """End the lease: drop the model, which may leave from now on."""
        cached, self._cached = self._cached, None
        if cached is not None:
            self._lender.release(cached)


class Leasing(AbstractContextManager[Lease]):
    """What `registry.lease` returns before the `with` block: entering it starts the lease."""

    _lease: Lease | None = None

    def __init__(
        self,
        session: "Loader",
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        keep_alive: str | float | None,
    ) -> None:
        self._session, self._given, self._options, self._keep_alive = session, name, options, keep_alive

    def __enter__(self) -> Lease:
        if self._lease is not None:
            raise RequestError(
                f"This lease of model {self._name!r} has begun already.\n"
                f"Lease it once more: with registry.lease({self._name!r}) as lease:"
            )
        session = self._session
        target, cached = session.acquire(self._given, self._options, lease=True, keep_alive=self._keep_alive)
        self._lease = lease = Lease(target, cached, session)
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.end()

    def __del__(self) -> None:
        if self._lease is not None:  # nobody can end it any more
            self._lease.end()

    @property
    def _name(self) -> str:
        return self._given if isinstance(self._given, str) else parse_name(self._given).text

    if not TYPE_CHECKING:

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            raise RequestError(
                f"A lease of model {self._name!r} starts with a `with` block: it has no {attribute!r} before.\n"
                f"Use: with registry.lease({self._name!r}) as lease:"
            )
