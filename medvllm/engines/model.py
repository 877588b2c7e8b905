"""A model that an engine computes: what a lease offers in place of a model of torch."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medvllm.engines.config import PlainConfig
from medvllm.engines.export import GRAPH, Export
from medvllm.engines.onnx_session import OnnxSession
from medvllm.engines.openvino_session import OpenVinoSession
from medvllm.engines.verdict import Verdict
from medvllm.errors import LoadError
from medvllm.forking import Forked, register

if TYPE_CHECKING:
    import numpy as np


Part = Literal["tokens", "head_tokens", "head_texts"]


class GraphSession(Protocol):
    """A graph that a library has opened."""

    inputs: list[str]

    @property
    def precision(self) -> str: ...
    def compute(self, feeds: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]": ...
    def properties(self) -> dict[str, Any]: ...


_SESSIONS: dict[str, Callable[[Path, int], GraphSession]] = {"onnx": OnnxSession, "openvino": OpenVinoSession}


class EngineModel(Forked):
    """An exported model in the memory of an engine. Threads may compute with it at the same time.

    Its class is a subclass with the name of the class that was exported, such as BertForTokenClassification.

    Attributes:
        config: The config of the model.
        device: Always "cpu".
        dtype: The precision of the weights, "float32" or "int8".
        part: What the graph computes: "tokens", "head_tokens" or "head_texts".
        types: How many texts of a pair have an embedding; 1 if they are not told apart.
        is_causal: Whether what the graph computes for a token never depends on the tokens after it.
        engine: The name of the engine.
        export: The exported files.
        name_or_path: The folder of the export.
    """

    device = "cpu"

    def __init__(self, export: Export, engine: str, threads: int) -> None:
        self.export, self.engine, self._threads = export, engine, threads
        self.dtype = export.precision
        self.part: Part = export.facts["part"]
        self.types: int = export.facts["types"]
        self.is_causal: bool = export.facts["is_causal"]
        self.config = PlainConfig(export.facts["config"])
        self.name_or_path = str(export.folder)
        self._session: GraphSession | None = _SESSIONS[engine](export.folder / GRAPH, threads)
        register(self)

    def compute_rows(
        self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] = ()
    ) -> "list[np.ndarray[Any, Any]]":
        """Return what the graph computes for each row of token ids.

        Args:
            rows: The token ids, with special tokens. Shorter rows are padded. In int8, each row is computed alone: the
                numbers of all rows of a batch would be rounded to one scale, and an answer would depend on its
                neighbours.
            types: For each token, the number of its text in a pair. Empty, or an empty row, if all are 0.

        Returns:
            For each row an array in float32: of shape [tokens, size], or [classes] if the graph judges whole texts.
        """
        if self.dtype == "int8" and len(rows) > 1:
            kinds_of = types or ((),) * len(rows)
            return [self._compute_batch([row], [kinds])[0] for row, kinds in zip(rows, kinds_of, strict=True)]
        return self._compute_batch(rows, types)

    def _compute_batch(
        self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> "list[np.ndarray[Any, Any]]":
        import numpy as np

        session = self._open_session()
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.export.facts["padding_id"], dtype=np.int64)
        mask = np.zeros_like(ids)
        kinds = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
            if types and types[number]:
                kinds[number, : len(row)] = types[number]
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
        found = session.compute({name: known[name] for name in session.inputs})
        if self.part == "head_texts":
            return list(found)
        return [found[number, : len(row)] for number, row in enumerate(rows)]

    @property
    def size_bytes(self) -> int:
        """The bytes that the model takes in memory."""
        return memory_bytes(self.export)

    @property
    def precision(self) -> str:
        """The precision that the engine computes in, read back from its library or from the graph that it opened."""
        return self._open_session().precision

    def get_input_embeddings(self) -> SimpleNamespace:
        """Return what tells how many tokens have an embedding, as a model of transformers does."""
        return SimpleNamespace(num_embeddings=self.export.facts["embeddings"])

    def describe(self, verdict: Verdict) -> dict[str, Any]:
        """Return what computes, for a receipt."""
        session = self._open_session()
        return {
            "name": self.engine,
            "version": verdict.version,
            "precision": verdict.precision,
            "threads": self._threads,
            **session.properties(),
            "files": {name: vars(digest) for name, digest in self.export.files.items()},
            "agreement": {
                "with": "torch, float32, eager attention, each text alone",
                "batches": verdict.shapes,
                "largest_difference": verdict.difference,
                "equal_decisions": verdict.agreement,
            },
        }

    def after_fork(self, *, is_child: bool) -> None:
        """Leave the session in a child, which has none of the library's threads. Another is opened when it is used."""
        if is_child and self._session is not None:
            # It is never freed: that would wait for its threads.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session, self._threads = None, 1

    def _open_session(self) -> GraphSession:
        if self._session is None:
            if not self.export.fingerprint.is_current():
                raise LoadError(
                    f"The files in {self.export.folder} changed since they were checked.\n"
                    "Load the model again: registry.clear_cache()"
                )
            self._session = _SESSIONS[self.engine](self.export.folder / GRAPH, self._threads)
        return self._session


def memory_bytes(export: Export) -> int:
    """Return the bytes that an export takes in the memory of an engine.

    An engine copies the weights of matrix products into an order of its own, and keeps the others as they are.
    """
    return export.size_bytes


def open_model(export: Export, engine: str, threads: int) -> EngineModel:
    """Return an export as a model that an engine computes.

    Args:
        export: The export.
        engine: The engine, "onnx" or "openvino".
        threads: How many threads the engine may use.
    """
    name = str(export.facts["model_class"])
    made: EngineModel = type(name, (EngineModel,), {"__doc__": EngineModel.__doc__})(export, engine, threads)
    return made
