"""The library that reads and writes Parquet."""

from typing import Any

from medvllm.errors import MissingDependencyError


def import_parquet() -> Any:
    """Return `pyarrow.parquet`.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet files need pyarrow.\nInstall it with: pip install 'medvllm[parquet]'", package="pyarrow"
        ) from error
    return parquet
