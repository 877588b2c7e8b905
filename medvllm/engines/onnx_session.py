"""A graph that ONNX Runtime computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_PROVIDER = "CPUExecutionProvider"  # named: otherwise, the library chooses among those that are installed
_ERRORS_ONLY = 3
_PRODUCTS = "MatMul", "Gemm", "MatMulInteger"


class OnnxSession:
    """A graph in ONNX Runtime. Threads may compute with it at the same time."""

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Threads that wait for work must not keep a core busy that another library needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._graph = graph
        self._session: Any = onnxruntime.InferenceSession(str(graph), options, providers=[_PROVIDER])
        self.inputs = [each.name for each in self._session.get_inputs()]

    @property
    def precision(self) -> str:
        """The precision of the weights in products of matrices; the lowest, if it is mixed.

        The library does not tell it, so the graph is read again.
        """
        import onnx

        graph = onnx.load(self._graph, load_external_data=False).graph
        types = {each.name: onnx.TensorProto.DataType.Name(each.data_type) for each in graph.initializer}
        read = {name for node in graph.node if node.op_type in _PRODUCTS for name in node.input}
        kinds = {types[name] for name in read & types.keys()}
        if kinds & {"INT8", "UINT8"}:
            return "int8"
        return "float32" if kinds <= {"FLOAT"} else " and ".join(sorted(kinds)).lower()

    def compute(self, feeds: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """Return the output of the graph for its inputs."""
        found: np.ndarray[Any, Any] = self._session.run(None, dict(feeds))[0]
        return found

    def properties(self) -> dict[str, Any]:
        """Return what the library says of itself, for a receipt."""
        return {"providers": self._session.get_providers()}
