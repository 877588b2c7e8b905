"""The check of the history. Everything that it reports is computed from the rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from medvllm.catalog.events import ACTIONS, Event
from medvllm.catalog.sql.history import FIRST, is_moment
from medvllm.catalog.sql.recorded_events import event_of
from medvllm.catalog.sql.replay import Replay
from medvllm.catalog.sql.tables import head, history
from medvllm.catalog.sql.texts import sha256


@dataclass(frozen=True)
class Checked:
    """The number of rows of the history, a hash over all of them, and what is wrong."""

    length: int
    hash: str
    flaws: list[str]


def check(connection: Connection) -> Checked:
    """Read the whole history, and compare it with its hashes, with the head, and with entries and aliases."""
    chain = _Chain()
    flaws: list[str] = []
    for row in connection.execute(select(history).order_by(history.c.seq).execution_options(yield_per=1000)):
        flaws += chain.add(row)
    flaws += chain.ends(connection)
    flaws += chain.replay.differences(connection)
    return Checked(chain.length, chain.hash, flaws)


class _Chain:
    """The rows so far. `add` yields what is wrong with the next one."""

    def __init__(self) -> None:
        self.length, self.hash, self.replay = 0, FIRST, Replay()
        self._before: object = FIRST  # the hash in the row before, so that a wrong one is reported once
        self._expected = 1
        self._last_at = ""
        self._change_number = 1

    def add(self, row: Row[Any]) -> Iterator[str]:
        self.length += 1
        self.hash = sha256(f"{self.hash}{row.record}")
        if row.seq < 1:
            yield f"row {row.seq} stands before the first event"
            return
        yield from _missing(self._expected, row.seq - 1)
        event = event_of(row.seq, row.at, row.name, row.record)
        if event is None or not self.replay.add(event):
            yield f"event {row.seq} is not what was written, or not where"
        elif row.seq == self._expected and row.hash != sha256(f"{self._before}{row.record}"):
            yield f"event {row.seq} is not what was written after event {row.seq - 1}"
        if event is not None:
            yield from self._order(event)
        self._before, self._expected = row.hash, row.seq + 1

    def _order(self, event: Event) -> Iterator[str]:
        if event.action not in ACTIONS:
            yield f"event {event.seq} has an unknown action: {event.action[:40]!r}"
        elif event.action != "loaded":
            self._change_number = event.seq + 1
        if not is_moment(event.at):
            yield f"event {event.seq} has no time"
            return
        if event.at < self._last_at:
            yield f"event {event.seq} is earlier than the one before it"
        self._last_at = event.at

    def ends(self, connection: Connection) -> Iterator[str]:
        """Yield what is wrong with the head, the row that says where the history ends."""
        heads = connection.execute(select(head)).all()
        if len(heads) != 1:
            yield f"the catalogue has {len(heads) or 'no'} rows that say where the history ends; there must be one"
        for end in heads:
            last = self._expected - 1
            if type(end.length) is not int:
                yield "the catalogue does not say how many events there are"
                continue
            yield from _missing(self._expected, end.length)
            if last > end.length or self.hash != end.hash:
                yield f"the history ends with event {last}, and the catalogue was last changed by another"
            if end.change_number != self._change_number:
                yield (
                    f"the change number of the catalogue is {str(end.change_number)[:40]}, and its events lead to "
                    f"{self._change_number}: running processes may not see changes"
                )


def _missing(first: int, last: int) -> Iterator[str]:
    if first <= last:
        yield f"event {first} is missing" if first == last else f"events {first} to {last} are missing"
