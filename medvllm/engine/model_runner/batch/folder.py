"""The folder that a batch is written to."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path

from medvllm.engine.model_runner.batch import manifest
from medvllm.engine.model_runner.batch.manifest import Manifest, PartRecord
from medvllm.errors import MedVLLMError, OutputError, RequestError
from medvllm.file_lock import file_lock, is_held
from medvllm.files import chmod, common_mode, is_partial, open_partial, sync, sync_folder, write_whole

BAD_ROWS = "bad_rows.jsonl"
PARTS = "parts"
_LOCK = ".lock"
_PATIENCE_S = 1.0


class BatchFolder:
    """The folder of a batch: its manifest, its parts and the rows without an answer.

    Args:
        path: The folder. It need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = path / PARTS

    @property
    def is_ours(self) -> bool:
        """Whether there is a batch in it. Other programs have a file of this name, too."""
        return manifest.is_of_batch(self.path / manifest.NAME)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, which is created, for the duration of the block.

        Raises:
            RequestError: Another run writes to it, or it holds something else.
            OutputError: It cannot be written to.
        """
        with translated(self.path):
            self._check_content()
            self._parts.mkdir(parents=True, exist_ok=True)
            # `medvllm batch status` holds it for a moment.
            holding = file_lock(self.path / _LOCK, setting=None, private=False, patience_s=_PATIENCE_S)
            try:
                holding.__enter__()
            except BlockingIOError as error:
                raise RequestError(
                    f"Another run writes to '{self.path}' now.\nSee how far it is: medvllm batch status {self.path}"
                ) from error
        try:
            yield
        finally:
            holding.__exit__(None, None, None)

    def is_locked(self) -> bool:
        """Return whether a run writes to it now."""
        return is_held(self.path / _LOCK)

    def clear(self) -> None:
        """Remove what an earlier batch has written, its manifest last: if this is cut off, the folder is still ours."""
        with translated(self.path):
            left = (each for pattern in ("part-*", ".part-*") for each in self._parts.glob(pattern))
            for file in (*left, self.path / BAD_ROWS, self.path / manifest.NAME):
                file.unlink(missing_ok=True)
            sync_folder(self._parts)
            sync_folder(self.path)

    def is_whole(self, record: PartRecord) -> bool:
        """Return whether the file of a part is there, and as it was written.

        Raises:
            OutputError: It cannot be read, so nobody knows.
        """
        file = self._parts / record.file
        try:
            if file.stat().st_size != record.size:
                return False
            with file.open("rb") as stream:
                return file_digest(stream, "sha256").hexdigest() == record.output_sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutputError(
                f"'{file}' cannot be read: {error.strerror or error}.\n"
                "Make it readable, or remove it, so that it is made again. Then give the same command again.",
                path=str(file),
            ) from error

    def write_part(self, file: str, content: bytes) -> None:
        """Write the file of a part. It appears complete or not at all."""
        with translated(self._parts / file):
            write_whole(self._parts / file, content)

    def write_bad_rows(self, written: Manifest) -> None:
        """Write the rows without an answer, in the order of the corpus. Without any, there is no file."""
        file = self.path / BAD_ROWS
        with translated(file):
            if not any(part.answered < part.rows for part in written.parts.values()):
                file.unlink(missing_ok=True)
                return
            with open_partial(file) as (handle, path), os.fdopen(os.dup(handle), "wb") as stream:
                for row in written.bad_rows():
                    line = json.dumps(vars(row), ensure_ascii=False)
                    stream.write(line.encode("utf-8", "backslashreplace") + b"\n")
                stream.flush()
                sync(handle)
                chmod(handle, common_mode())
                path.replace(file)
            sync_folder(self.path)

    def _check_content(self) -> None:
        """Raise RequestError for a folder with something else in it."""
        if self.is_ours or not self.path.exists():
            return
        names = {each.name for each in self.path.iterdir() if not is_partial(each, self.path / manifest.NAME)}
        with suppress(FileNotFoundError):
            if names <= {_LOCK, PARTS} and not any(self._parts.iterdir()):  # a run was stopped before it began
                return
        if names - {_LOCK}:
            raise RequestError(
                f"Folder '{self.path}' is not empty, and holds no batch.\nUse a new folder, or an empty one."
            )


@contextmanager
def translated(file: Path) -> Iterator[None]:
    """Raise errors of the system as OutputError, which says how to go on."""
    try:
        yield
    except MedVLLMError:  # some are errors of the system, too
        raise
    except OSError as error:
        raise OutputError(
            f"'{file}' cannot be written: {error.strerror or error}.\n"
            "When it can, give the same command again: it goes on with the parts that are missing.",
            path=str(file),
        ) from error
