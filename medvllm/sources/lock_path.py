"""Where the lock file is."""

from pathlib import Path

from medvllm import settings

LOCK_NAME = "medvllm.lock"


def lock_path() -> Path:
    """Return the lock file in use.

    It is the file that MEDVLLM_LOCK_FILE names, or else `medvllm.lock` in the working directory. With
    MEDVLLM_REQUIRE_LOCK, it is `medvllm.lock` in MEDVLLM_HOME instead, because a file in the working directory may
    have come with the models.
    """
    stated = settings.LOCK_FILE()
    if stated is not None:
        return stated
    if settings.REQUIRE_LOCK():
        return settings.HOME() / LOCK_NAME
    try:
        return Path.cwd() / LOCK_NAME
    except OSError:  # the working directory was removed
        return Path(LOCK_NAME)
