"""A graph that ONNX Runtime computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_PROVIDER = "CPUExecutionProvider"  # named: otherwise, the library chooses among those that are installed
_ERRORS_ONLY = 3


class OnnxSession:
    """A graph in ONNX Runtime. Threads may compute with it at the same time.

    Attributes:
        precision: The precision of the weights and of the result.
    """

    precision = "float32"

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Threads that wait for work must not keep a core busy that another library needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(str(graph), options, providers=[_PROVIDER])
        self.inputs = [each.name for each in self._session.get_inputs()]

    def compute(self, feeds: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """Return the output of the graph for its inputs."""
        found: np.ndarray[Any, Any] = self._session.run(None, dict(feeds))[0]
        return found

    def properties(self) -> dict[str, Any]:
        """Return what the library says of itself, for a receipt."""
        return {"providers": self._session.get_providers()}
