"""Writes vectors as a NumPy array."""

from typing import Any

from medvllm.corpora.writing.answers import Answers
from medvllm.corpora.writing.writer import Writer
from medvllm.errors import RequestError


class VectorWriter(Writer):
    """Writes an array of shape [texts, size], float32, as `numpy.load` reads it. The order is that of the corpus."""

    kind = "vectors"
    has_ids = False
    _shape: tuple[int, int] | None = None

    def write(self, answers: Answers) -> None:
        vectors = answers.vectors()
        if self._shape is None:
            if not self.stream.seekable():
                raise RequestError("An .npy file cannot be written to a pipe.\nWrite it to a file: -o vectors.npy")
            self._shape = (0, vectors.shape[1])
            self._write_header()
        self._shape = (self._shape[0] + len(vectors), self._shape[1])
        self.stream.write(vectors.astype("<f4", copy=False).tobytes())

    def finish(self, receipt: dict[str, Any] | None) -> None:
        end = self.stream.tell()
        self.stream.seek(0)
        self._write_header()
        self.stream.seek(end)  # where an existing file that is overwritten is cut off

    def _write_header(self) -> None:
        """Write the header. NumPy leaves room in it, so that its length does not depend on the number of rows."""
        from numpy.lib import format

        format.write_array_header_1_0(self.stream, {"descr": "<f4", "fortran_order": False, "shape": self._shape})
