"""What the requests of the medical tasks have in common."""

from typing import Annotated, Any, Literal

from pydantic import Field

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.request import Priority
from medvllm.engines.kinds import EngineName, Precision
from medvllm.server.context import Server
from medvllm.server.offsets import OffsetUnit
from medvllm.server.texts import StrictModel

LongText = Literal["window", "error", "truncate"]
Score = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class MedicalRequest(StrictModel):
    """What the requests of the medical tasks have in common.

    Attributes:
        model: A name of the catalogue, such as "ner", "ner@production" or "ner@3".
        offset_unit: What offsets count: code points as Python does, UTF-16 code units as JavaScript and Java do, or
            bytes of UTF-8 as Go and Rust do. The answer repeats it.
        engine: What computes; that of the server by default.
        precision: In which precision an engine may compute; float32 by default.
        receipt: Whether the answer has a receipt of what answered.
        priority: "interactive" calls go before those that are "bulk".
        timeout_s: Seconds after which the call ends.
        keep_alive: How long the model stays in memory afterwards: seconds, or a duration such as "10m".
    """

    model: str
    offset_unit: OffsetUnit = "codepoint"
    engine: EngineName | None = None
    precision: Precision = "float32"
    receipt: bool = False
    priority: Priority = "interactive"
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    keep_alive: float | str | None = None

    def runner(self, server: Server) -> ModelRunner:
        """Return the runner that the request asks for. Raises: as `Server.entry`."""
        return server.runner(self.model, self.engine, self.precision, keep_alive=self.keep_alive)

    def limits(self) -> dict[str, Any]:
        """Return how the call may run, for `Server.run`."""
        return {"timeout_s": self.timeout_s, "priority": self.priority}
