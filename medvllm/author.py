"""The user and the time, for records such as the history."""

import os
from datetime import UTC, datetime
from functools import cache


@cache
def who() -> str:
    """Return the user's name from the operating system, since an environment variable could be set to anything."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError, AttributeError):  # Windows, or a user id without a name, as in containers
        import getpass

        return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
