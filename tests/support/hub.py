"""A model Hub on 127.0.0.1 that huggingface_hub takes for the real one, with faults to order.

with LoopbackHub() as hub:
    commit = hub.add("acme/clin-bert", folder)
    hub.fault("model.safetensors", "truncate", at=1000, times=1)
    snapshot_download("acme/clin-bert", endpoint=hub.url)
    assert hub.requests("GET /acme/clin-bert/resolve/")
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from types import MappingProxyType
from typing import Any, Literal, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["truncate", "flip", "gated", "drop", "throttle", "unavailable", "slow", "hold", "reset"]

# A bare id such as "gpt2" is a repo too, so the second part must not be the word that follows a repo.
_API = re.compile(
    r"/api/models/(?P<repo>[^/]+(?:/(?!revision/|tree/)[^/]+)?)"
    r"(?:/(?P<what>revision|tree)/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?"
)
_FILE = re.compile(r"/(?P<repo>[^/]+(?:/(?!resolve/)[^/]+)?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_BODY_FAULTS = ("truncate", "flip", "hold", "reset")


@dataclass(frozen=True)
class Request:
    """One request as it arrived: the path keeps its query, header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """One thing that goes wrong, for the requests it matches; see LoopbackHub.fault."""

    target: str
    kind: Kind
    times: int | None
    at: int
    seconds: float
    method: str | None
    hits: int = 0
    reached: Event = field(default_factory=Event)  # set when the first request meets the fault
    release: Event = field(default_factory=Event)  # "hold" waits for it

    def matches(self, method: str, names: Iterable[str]) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        if self.method is not None and self.method != method:
            return False
        return any(fnmatchcase(name, self.target) for name in names)


class _File:
    """The bytes of one file, with the digests that the Hub announces for it."""

    def __init__(self, path: str, content: bytes) -> None:
        self.content = content
        self.oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.lfs = path.endswith((".safetensors", ".bin"))
        self.etag = hashlib.sha256(content).hexdigest() if self.lfs else self.oid
        self.row: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(content), "path": path}
        if self.lfs:
            self.row["lfs"] = {"oid": self.etag, "size": len(content), "pointerSize": 134}


class _Repo:
    def __init__(self) -> None:
        self.commits: dict[str, dict[str, _File]] = {}
        self.refs: dict[str, str] = {}


class LoopbackHub:
    """Repos in memory behind a real HTTP/1.1 server. Stopped and started again, it keeps its port."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.stopping = Event()
        self._repos: dict[str, _Repo] = {}
        self._faults: list[Fault] = []
        self._lock = Lock()  # guards log, _repos, _faults and the counts in them
        self._server: _Server | None = None
        self._port = 0

    def start(self) -> Self:
        self.stopping.clear()
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, args=(0.01,), name="loopback-hub", daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse new connections and cut the open ones, held downloads too."""
        if self._server is None:
            return
        self.stopping.set()
        for fault in self._faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()
        self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        if not self._port:
            raise RuntimeError("The hub has no address before start().")
        return f"http://127.0.0.1:{self._port}"

    def add(
        self,
        repo_id: str,
        folder: Path | Mapping[str, bytes],
        *,
        commit: str | None = None,
        branch: str = "main",
        tags: Iterable[str] = (),
    ) -> str:
        """Serve the folder's files (or a mapping of path to bytes) as one commit, and return the commit.

        The files are read now: what happens to the folder later does not change the commit. The branch
        moves to it; earlier commits stay reachable. By default the commit is derived from the contents.
        """
        contents = folder if isinstance(folder, Mapping) else _read(folder)
        files = {path: _File(path, contents[path]) for path in sorted(contents)}
        listing = "\n".join(f"{file.oid} {path}" for path, file in files.items())
        commit = commit or hashlib.sha1(listing.encode()).hexdigest()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"A commit is 40 hexadecimal digits, not {commit!r}.")
        with self._lock:
            repo = self._repos.setdefault(repo_id, _Repo())
            repo.commits[commit] = files
            repo.refs.update(dict.fromkeys((branch, *tags), commit))
        return commit

    def fault(
        self,
        target: str,
        kind: Kind,
        *,
        times: int | None = None,
        at: int = 0,
        seconds: float = 0,
        method: Literal["GET", "HEAD", "POST"] | None = None,
    ) -> Fault:
        """Make requests go wrong, `times` times or always; the returned fault counts its hits.

        The target is a glob over any of: the repo id, the file's path, its base name, "repo/file", and
        the URL's path ("/api/models/*/tree/*"). By kind:

        - throttle, unavailable: 429 with Retry-After of `seconds`, or 503
        - gated: 403 GatedRepo for the files; the API still answers, as the Hub's does
        - drop: the connection closes without an answer
        - slow: the answer starts after `seconds`
        - truncate, reset: the body ends at byte `at` of the file, by a close or by a TCP reset
        - flip: byte `at` of the file is inverted
        - hold: the body stops at byte `at` until `fault.release` is set

        Truncate, reset, flip and hold concern GETs of files only.
        """
        fault = Fault(target, kind, times, at, seconds, method)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self._lock:
            for fault in self._faults:
                fault.release.set()
            self._faults.clear()

    def requests(self, substring: str = "") -> list[Request]:
        """The requests so far whose "METHOD path" contains the substring."""
        with self._lock:
            return [request for request in self.log if substring in str(request)]

    def clear_log(self) -> None:
        with self._lock:
            self.log.clear()

    def record(self, request: Request) -> None:
        with self._lock:
            self.log.append(request)

    def repo(self, repo_id: str) -> _Repo | None:
        with self._lock:
            return self._repos.get(repo_id)

    def is_gated(self, repo_id: str) -> bool:
        with self._lock:
            return any(fault.kind == "gated" and fnmatchcase(repo_id, fault.target) for fault in self._faults)

    def meet(self, method: str, names: Iterable[str], *, file: bool) -> list[Fault]:
        """The faults that this request runs into, counted. One that replaces the answer ends the list."""
        met = []
        with self._lock:
            for fault in self._faults:
                in_body = fault.kind in _BODY_FAULTS
                concerns = file and method == "GET" if in_body else file or fault.kind != "gated"
                if not concerns or not fault.matches(method, names):
                    continue
                fault.hits += 1
                fault.reached.set()
                met.append(fault)
                if not in_body and fault.kind != "slow":
                    break
        return met


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: LoopbackHub) -> None:
        super().__init__(address, _Handler)
        self.hub = hub
        self._connections: set[socket.socket] = set()
        self._lock = Lock()  # guards _connections

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        # Closing the listener leaves keep-alive connections, and their threads, answering.
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client may have been quicker
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away, or a connection cut on purpose, is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; without this each answer takes 40 ms

    def do_GET(self) -> None:
        hub = cast(_Server, self.server).hub
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.record(Request(self.command, self.path, headers))
        api, file = _API.fullmatch(url.path), _FILE.fullmatch(url.path)
        match = api or file
        if match is None or self.command == "POST":
            self.close_connection = True  # a body may be waiting unread
            return self._error(404, None, f"No such page: {url.path}")
        repo_id, revision, path = (unquote(match[name] or "") for name in ("repo", "rev", "path"))

        names = [repo_id, url.path]
        if file:
            names += [path, path.rpartition("/")[2], f"{repo_id}/{path}"]
        faults = hub.meet(self.command, names, file=file is not None)
        if self._answered_by(faults):
            return None

        repo = hub.repo(repo_id)
        if repo is None:
            # To the anonymous, the Hub does not tell a missing repo from a private one.
            status = 404 if "authorization" in headers else 401
            return self._error(status, "RepoNotFound", "Repository not found")
        commit = repo.refs.get(revision or "main", revision)
        files = repo.commits.get(commit)
        if files is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file:
            return self._file(commit, files.get(path), faults)
        if match["what"] == "tree":
            recursive = parse_qs(url.query).get("recursive", [""])[-1].lower() in ("1", "true")
            return self._tree(commit, files, path, recursive=recursive)
        siblings = [{"rfilename": name} for name in files]
        gated = "manual" if hub.is_gated(repo_id) else False
        info = {"_id": commit[:24], "id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}
        return self._json({**info, "private": False, "gated": gated, "disabled": False, "tags": []})

    do_HEAD = do_POST = do_GET

    def _answered_by(self, faults: list[Fault]) -> bool:
        """Act out the faults that come before the answer; true when one of them is the answer."""
        for fault in faults:
            if fault.kind == "slow":
                cast(_Server, self.server).hub.stopping.wait(fault.seconds)
            elif fault.kind == "drop":
                self.close_connection = True
                return True
            elif fault.kind == "throttle":
                self._error(429, None, "Too many requests", {"Retry-After": f"{fault.seconds:.0f}"})
                return True
            elif fault.kind == "unavailable":
                self._error(503, None, "Service unavailable")
                return True
            elif fault.kind == "gated":
                self._error(403, "GatedRepo", "Access to this model is restricted")
                return True
        return False

    def _tree(self, commit: str, files: dict[str, _File], under: str, *, recursive: bool) -> None:
        prefix = f"{under}/" if under else ""
        rows: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                parent = prefix + "/".join(parts[:depth])
                rows[parent] = {"type": "directory", "oid": commit, "size": 0, "path": parent}
            if recursive or len(parts) == 1:
                rows[path] = file.row
        if under and not rows:
            return self._error(404, "EntryNotFound", f"{under} does not exist", {"X-Repo-Commit": commit})
        return self._json(list(rows.values()))

    def _file(self, commit: str, file: _File | None, faults: list[Fault]) -> None:
        common = {"X-Repo-Commit": commit}
        if file is None:
            return self._error(404, "EntryNotFound", "Entry not found", common)
        size = len(file.content)
        start, end = _range(self.headers.get("Range"), size)
        if start >= end > 0:
            return self._error(416, None, "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
        headers = common | {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(size)}
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(206 if "Range" in self.headers else 200, headers, end - start)
        if self.command == "GET":
            self._body(file.content, start, end, faults)

    def _body(self, content: bytes, start: int, end: int, faults: list[Fault]) -> None:
        """Send content[start:end]; positions in faults count from the start of the file."""
        sent = start
        in_body = [fault for fault in faults if fault.kind in _BODY_FAULTS]
        for fault in sorted(in_body, key=lambda fault: fault.at):
            stop = min(max(fault.at, sent), end)
            self.wfile.write(content[sent:stop])
            sent = stop
            if fault.kind == "hold":
                fault.release.wait()
            elif fault.kind == "flip" and sent == fault.at < end:
                self.wfile.write(bytes([content[sent] ^ 0xFF]))
                sent += 1
            elif fault.kind in ("truncate", "reset") and sent < end:
                self.close_connection = True
                if fault.kind == "reset":
                    # A close that lingers for zero seconds is a reset; the server's own shutdown is not.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                return
        self.wfile.write(content[sent:end])

    def _json(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self._head(200, {"Content-Type": "application/json; charset=utf-8"}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        body = json.dumps({"error": message}).encode()
        named = {"X-Error-Code": code} if code else {}
        self._head(status, {**headers, **named, "X-Error-Message": message}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr clean; hub.log has it all."""


def _read(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last, of "bytes=0-99", "bytes=100-" or "bytes=-8"."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None:
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last or 0), 0), size
    return int(first), min(int(last) + 1, size) if last else size
