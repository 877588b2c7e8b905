"""What a preparing process is asked to do, and what it answers."""

from dataclasses import dataclass
from pathlib import Path

from medvllm.engines.verdict import Verdict
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources.snapshot import Snapshot


@dataclass(frozen=True)
class Job:
    """An export to make, and engines to compare with torch.

    Attributes:
        metadata: The entry, completed with what the files say.
        snapshot: The model's files.
        options: The options of the load, completed with those of the entry.
        part: What the graph computes.
        folder: The folder of the export.
        source: For an export in int8, the folder of the export in float32 that it is made of; None otherwise.
        engines: The engines to compare.
    """

    metadata: ModelMetadata
    snapshot: Snapshot
    options: LoadOptions
    part: str
    folder: Path
    source: Path | None
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a preparing process found.

    Attributes:
        rejection: Why no engine can compute the model; None if there is an export.
        verdicts: The verdict on each engine.
        failure: What kept it from finding out, such as a full disk. Another try may succeed.
    """

    rejection: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    failure: str | None = None
