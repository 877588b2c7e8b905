"""`medvllm serve` in a process of its own."""

import os
import re
import threading
from typing import IO

from tests.support import warm


class Started:
    """A server in a process of its own, whose lines on standard error are kept."""

    def __init__(self, *options: str) -> None:
        reading, writing = os.pipe()
        self._process = warm.start("-m", "medvllm.cli", "serve", "--port", "0", *options, stderr=writing)
        os.close(writing)
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._status: int | None = None
        self._reading = threading.Thread(target=self._read, args=(os.fdopen(reading),))
        self._reading.start()

    @property
    def is_running(self) -> bool:
        return self._reading.is_alive()

    def wait_for(self, pattern: str) -> str:
        """Return what the group of a pattern is in the first line that has it."""
        with self._arrived:
            found: list[re.Match[str]] = []

            def arrived() -> bool:
                found[:] = [match for line in self.lines if (match := re.search(pattern, line))]
                return bool(found) or not self.is_running

            assert self._arrived.wait_for(arrived, 120) and found, self.lines
            return found[0][1]

    def wait(self) -> int:
        """Return the exit status."""
        if self._status is None:
            self._status = self._process.wait(60)
            self._reading.join()
        return self._status

    def end(self, signal_: int) -> None:
        if self._status is None:
            os.kill(self.pid, signal_)
            self.wait()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._arrived:
                    self.lines.append(line)
                    self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()
