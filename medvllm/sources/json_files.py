"""JSON files of a model, read with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from medvllm.errors import IncompleteSnapshotError, SourceError
from medvllm.sources.os_errors import to_source_error


def read_json(file: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file.

    Args:
        file: The file.
        kind: What the file must hold: `dict` or `list`.

    Raises:
        IncompleteSnapshotError: The file does not exist.
        SourceError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        why = ": it is a broken link" if file.is_symlink() else ""
        raise IncompleteSnapshotError(f"{file.parent} has no {file.name}{why}.", path=str(file)) from error
    except OSError as error:
        raise to_source_error(error, file) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read as JSON: {error}.", path=str(file)) from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise SourceError(f"{file} must hold {expected} in JSON, not {type(content).__name__}.", path=str(file))
    return content
