"""Which columns of a corpus hold the texts and the ids."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from shlex import quote
from typing import Any
from unicodedata import category

from medvllm.corpora.rows import Row
from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names
from medvllm.spelling import has_lone_surrogate

_TEXT, _ID = "text", "id"
_SHOWN_COLUMNS = 30
# Other names may be the first line of a file without headings: patients, dates and notes.
_SHOWN = re.compile(r"|[^\W\d]\S{,39}")


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        texts: The column of the texts, or the two columns of pairs of texts; empty for `usual`.
        id: The column of the ids; None for the column "id", in any case, if there is one.
        extra: Further columns; each must be there, and holds JSON where a format has only texts.
        usual: The columns of the texts if none are named.
    """

    texts: tuple[str, ...] = ()
    id: str | None = None
    extra: tuple[str, ...] = ()
    usual: tuple[str, ...] = (_TEXT,)

    @property
    def is_pair(self) -> bool:
        """Whether each row has two texts."""
        return len(self.texts or self.usual) == 2

    def find(self, names: Sequence[str], where: str) -> "Columns":
        """Return the columns by their names in a corpus; `id` stays None if there is none.

        Args:
            names: The names of all columns.
            where: What has these columns, for the message.

        Raises:
            RequestError: A column is missing, two columns have its name, or several may hold the ids.
        """
        texts = self.texts or self.usual
        _check_columns(texts, names, where, "--text-column")
        _check_columns(self.extra, names, where, None)
        if self.id is not None:
            _check_columns([self.id], names, where, "--id-column")
        chosen = self.id if self.id is not None else _find_id([name for name in names if name not in texts], where)
        return replace(self, texts=texts, id=chosen)

    def are_in(self, names: Collection[str]) -> bool:
        """Return whether a corpus with these columns has those to read."""
        return {*(self.texts or self.usual), *self.extra, *([] if self.id is None else [self.id])} <= {*names}

    def make_row(self, values: Mapping[str, Any], place: str) -> Row:
        """Return the row of a record, whose columns `find` has found.

        Raises:
            RequestError: A text or an id is missing or of another kind.
        """
        texts = [_check_text(_decode(values[name], name, place), name, place) for name in self.texts]
        id = None if self.id is None else _check_id(_decode(values[self.id], self.id, place), self.id, place)
        extra = {name: _decode(values[name], name, place) for name in self.extra}
        return Row(tuple(texts) if self.is_pair else texts[0], place, id, extra)


def strip_name(name: str) -> str:
    """Return the name of a column without white space and invisible characters, such as byte order marks, around it."""
    shown = [at for at, letter in enumerate(name) if not letter.isspace() and category(letter) not in ("Cf", "Cc")]
    return name[shown[0] : shown[-1] + 1] if shown else ""


def _find_id(names: Sequence[str], where: str) -> str | None:
    """Return the column that is called "id" in any case; None if there is none."""
    found = [name for name in names if strip_name(name).casefold() == _ID]
    if len(found) > 1:
        way = "Name it with: --id-column ID" if len({*found}) == len(found) else "Rename all but one."
        raise RequestError(
            f"There are {len(found)} columns that may hold the ids in {where}: {', '.join(map(repr, found))}.\n{way}"
        )
    return found[0] if found else None


def _check_columns(wanted: Iterable[str], names: Sequence[str], where: str, option: str | None) -> None:
    for name in wanted:
        if names.count(name) == 1:
            continue
        if name in names:
            raise RequestError(f"There are {names.count(name)} columns {name!r} in {where}.\nRename all but one.")
        known = [*dict.fromkeys(names)]
        if all(_SHOWN.fullmatch(each) and each.isprintable() for each in known):
            near = near_names(name, known)
            listed = ", ".join(each or "''" for each in known[:_SHOWN_COLUMNS])
            columns = f"Its columns: {listed or 'none'}{', …' if len(known) > _SHOWN_COLUMNS else ''}"
        else:
            near = [each for each in known if _letters(each) == _letters(name)][:1]  # tells nothing new
            count = "one column" if len(known) == 1 else f"{len(known)} columns"
            columns = f"It has {count}. Without headings, their names would be texts: they are not shown."
        advice = f"\nName it with: {option} {quote(near[0]) if near else 'COLUMN'}" if option else ""
        raise RequestError(
            f"There is no column {name!r} in {where}.{did_you_mean(near)}\n{columns}{advice}",
            value=name,
            candidates=tuple(near),
        )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _decode(value: Any, column: str, place: str) -> Any:
    """Return bytes as text: programs write texts to Parquet without saying that they are some."""
    if not isinstance(value, bytes):
        return value
    with suppress(UnicodeDecodeError):
        return value.decode()
    raise RequestError(f"Column {column!r} holds bytes that are not UTF-8 in {place}.\nWrite it again as text.")


def _check_text(value: Any, column: str, place: str) -> Any:
    """Return a text. A list passes: it may be a list of words, or a conversation, which the task checks."""
    if isinstance(value, (str, list)):
        return value
    found = "is null" if value is None else f"holds {_kind(value)}, not a text"
    raise RequestError(f"Column {column!r} {found} in {place}.\nLeave the row out, or write an empty text.")


def _check_id(value: Any, column: str, place: str) -> Any:
    is_broken = isinstance(value, str) and has_lone_surrogate(value)
    is_infinite = isinstance(value, float) and not isfinite(value)
    if isinstance(value, (list, dict)) or is_broken or is_infinite:
        found = "text that is not valid Unicode" if is_broken else "NaN or infinity" if is_infinite else _kind(value)
        raise RequestError(f"Column {column!r} holds {found} in {place}.\nAn id is a text or a number.")
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")
