"""Writes tables to Parquet."""

from typing import Any

from medvllm.corpora.parquet import import_parquet
from medvllm.corpora.writing.answers import Answers
from medvllm.corpora.writing.writer import Writer
from medvllm.errors import RequestError


class ParquetWriter(Writer):
    """Writes a table, with one group of rows for each chunk."""

    _file: Any = None
    _columns: tuple[str, ...] = ()

    @staticmethod
    def check() -> None:
        import_parquet()

    def write(self, answers: Answers) -> None:
        self._columns = answers.columns
        if not (rows := list(answers.rows())):
            return  # which say the types of the columns
        file = self._file or self._begin([_type_of([row[at] for row in rows]) for at in range(len(self._columns))])
        schema = file.schema
        columns = [_to_column([row[at] for row in rows], field) for at, field in enumerate(schema)]
        file.write_table(_pyarrow().table(columns, schema=schema))

    def finish(self, receipt: dict[str, Any] | None) -> None:
        file = self._file or self._begin([_pyarrow().null()] * len(self._columns))
        file.close()

    def abandon(self) -> None:
        if self._file is not None:
            self._file.is_open = False  # or it would write to the stream when it is collected

    def _begin(self, types: list[Any]) -> Any:
        schema = _pyarrow().schema(list(zip(self._columns, types, strict=True)))
        self._file = import_parquet().ParquetWriter(self.stream, schema)
        return self._file


def _pyarrow() -> Any:
    import pyarrow

    return pyarrow


def _type_of(values: list[Any]) -> Any:
    """Return the type of a column by its values in the first chunk."""
    pyarrow = _pyarrow()
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pyarrow.int64()
    if kinds and kinds <= {int, float}:
        return pyarrow.float64()
    return pyarrow.list_(pyarrow.float32()) if kinds == {list} else pyarrow.string()


def _to_column(values: list[Any], field: Any) -> Any:
    pyarrow = _pyarrow()
    if field.type == pyarrow.string():  # ids may be texts and numbers
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    try:
        return pyarrow.array(values, field.type)
    except (ValueError, TypeError, OverflowError):
        pass
    # Raised here, not in the handler: that error may hold a text.
    raise RequestError(
        f"Column {field.name!r} began with numbers, and now has other values, which Parquet cannot hold together.\n"
        "Write JSON lines instead: -o FILE.jsonl"
    )
