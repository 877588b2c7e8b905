"""A count of what this process itself has changed, so that its own next call sees the change at once.

What other programs change is found by looking, which costs system calls. See `model_registry/known_calls.py`.
"""

from itertools import count


class OwnChanges:
    """Counts changes of entries, settings files and lock files by this process.

    Attributes:
        number: A value that no earlier moment had. It changes with every change.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self.number = 0

    def note(self) -> None:
        """Record that something has changed. Call it after the change, from any thread."""
        self.number = next(self._numbers)


own_changes = OwnChanges()
