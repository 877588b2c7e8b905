"""A graph that OpenVINO computes."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.forking import Lock

if TYPE_CHECKING:
    import numpy as np

_TELEMETRY = "openvino_telemetry"
_import_lock = Lock()


class OpenVinoSession:
    """A graph in OpenVINO. Threads may compute with it at the same time: each one has a request of its own.

    A call of the compiled graph itself would share one request, and return the answers of other threads.

    Attributes:
        precision: The precision that the library says it computes in.
    """

    def __init__(self, graph: Path, threads: int) -> None:
        openvino = _import_openvino()
        core = openvino.Core()
        # Without the hint, the library chooses a precision by the CPU.
        properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self._compiled: Any = core.compile_model(core.read_model(str(graph)), "CPU", properties)
        self.inputs = [each.get_any_name() for each in self._compiled.inputs]
        self._hint: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision: str = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(self._hint, self._hint)
        self._of_thread = threading.local()

    def compute(self, feeds: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """Return the output of the graph for its inputs."""
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        found: np.ndarray[Any, Any] = request.infer(dict(feeds))[0]  # copied, as the arrays are the request's own
        return found

    def properties(self) -> dict[str, Any]:
        """Return what the library says of itself, for a receipt."""
        return {"inference_precision_hint": self._hint}


def _import_openvino() -> Any:
    with _import_lock, _without_telemetry():
        import openvino

    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep the library from importing its telemetry, which writes into the home folder and sends data."""
    is_imported = _TELEMETRY in sys.modules
    before = sys.modules.get(_TELEMETRY)
    if "openvino" not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it then fails
    try:
        yield
    finally:
        if is_imported and before is not None:
            sys.modules[_TELEMETRY] = before
        elif sys.modules.get(_TELEMETRY, 0) is None:
            del sys.modules[_TELEMETRY]
