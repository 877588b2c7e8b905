"""Pickles that are converted in the tests' own process."""

from pathlib import Path

from medvllm.sources import conversion, folder
from medvllm.sources.conversion import converter


def convert(model: Path, *, adapter: bool = False) -> Path:
    """Convert the pickles of a model's folder, so that a load in this home finds them converted; return the folder.

    A load would start a process for it, which imports torch for seconds. `tests/test_conversion.py` tests that process.
    """
    snapshot = folder.resolve_snapshot(model, None, adapter=adapter)
    if pickles := snapshot.layout.pickles:
        target = conversion.converted_folder(snapshot)
        target.mkdir(parents=True, exist_ok=True)
        converter.convert(model, target, pickles, "none")
    return model
