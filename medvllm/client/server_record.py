"""The servers of this user on this machine, as they say themselves. Only the user can read it: it has their keys."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from medvllm import settings
from medvllm.processes import RecordFolder
from medvllm.processes.process import Process

_MAX_TEXT = 1_000  # characters of a field


@dataclass(frozen=True)
class ServerRecord:
    """A server.

    Attributes:
        url: Its address.
        key: The key with which commands of the user may do all.
        conditions: What must be the same here, as `current_conditions` returns it.
        process: Its process.
    """

    url: str
    key: str
    conditions: str
    process: Process

    def __repr__(self) -> str:
        return f"ServerRecord({self.url!r}, {self.process})"  # without the key

    def publish(self) -> None:
        """Write the record to MEDVLLM_HOME; remove those of servers that are gone. OSError: it cannot be written."""
        for _ in read_records():
            pass
        _folder().write(os.urandom(16).hex(), json.dumps(asdict(self)))


def read_records() -> Iterator[ServerRecord]:
    """Yield the records of the servers of this user that run on this machine; remove those of servers that are gone."""
    folder = _folder()
    for stored in folder.read_all():
        if stored.owner != os.geteuid() or (record := _parse(stored.text)) is None:
            continue
        state = record.process.state(stored.owner)
        if state == "alive" and record.process.is_near:
            yield record
        elif state == "gone":
            with suppress(OSError):
                folder.remove(stored.id)


def _parse(text: bytes) -> ServerRecord | None:
    try:
        content = json.loads(text)
        own = content.pop("process")
        record = ServerRecord(**content, process=Process(**own))
        texts = [record.url, record.key, record.conditions, *(value for name, value in own.items() if name != "pid")]
        is_valid = all(isinstance(value, str) and len(value) <= _MAX_TEXT for value in texts)
        return record if is_valid and type(record.process.pid) is int and record.process.pid > 0 else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _folder() -> RecordFolder:
    return RecordFolder(settings.HOME() / "run" / "servers")
