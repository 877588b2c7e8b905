"""Streams that are hashed on the way, and members of a tar file that are plain files."""

import hashlib
import tarfile
from collections.abc import Callable
from typing import IO, Any


class HashingReader:
    """A stream that is hashed while it is read. `advance` gets the number of bytes of each read."""

    def __init__(self, source: IO[bytes], advance: Callable[[int], None] = lambda size: None) -> None:
        self._source, self._advance, self.sha256 = source, advance, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self.sha256.update(chunk)
        self._advance(len(chunk))
        return chunk


class HashingWriter:
    """A stream that is hashed and counted while it is written."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target, self.sha256, self.size_bytes = target, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self._target.write(content)
        self.sha256.update(content)
        self.size_bytes += len(content)
        return len(content)


class PlainMember(tarfile.TarInfo):
    """A plain file in a tar file. Every other kind is refused before its content is read, also a long name's header."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "PlainMember":
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{member.name[:80]!r} is not a plain file")
        return member


def open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Return the stream of a plain file in a tar file."""
    stream = tar.extractfile(member)
    assert stream is not None  # a plain file has one
    return stream


def add_member(tar: tarfile.TarFile, name: str, source: Any, size_bytes: int) -> None:
    """Add a stream to a tar file, without owner and time: equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o644
    tar.addfile(member, source)
