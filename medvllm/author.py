"""Who does something, and when, as records keep it."""

import os
from datetime import UTC, datetime
from functools import cache


@cache
def who() -> str:
    """Return the user by the operating system's word: a variable of the environment could say anything."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError, AttributeError):  # another system, or an id without a name, as in containers
        import getpass

        return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
