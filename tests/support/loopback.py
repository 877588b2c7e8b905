"""A Hub on the loopback interface that the real huggingface_hub talks to, with faults."""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

Fault = Literal["truncate", "flip", "drop", "reset", "drip", "status", "throttle", "redirect", "slow", "hold"]


@dataclass
class _Repo:
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """One request that the Hub saw; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class _Rule:
    pattern: str
    kind: Fault
    times: float
    argument: Any
    method: str


class LoopbackHub:
    """Serves repositories from memory. Use it as a context manager; `url` is the endpoint."""

    def __init__(self) -> None:
        self._repos: dict[str, _Repo] = {}
        self._renamed: dict[str, str] = {}  # former id -> repository
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()  # guards log and rules
        self.log: list[Request] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection that is still open."""
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections()

    def add(
        self, repo_id: str, folder: Path, *, commit: str | None = None, branch: str = "main", tags: Iterable[str] = ()
    ) -> str:
        """Serve a folder's files as a commit, to which `branch` and `tags` then point; return the commit."""
        files = {
            str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }
        if commit is None:
            commit = hashlib.sha1(repr([(name, _oid(content)) for name, content in files.items()]).encode()).hexdigest()
        repo = self._repos.setdefault(repo_id, _Repo())
        repo.commits[commit] = files
        repo.refs |= dict.fromkeys((branch, *tags), commit)
        return commit

    def rename(self, former: str, repo_id: str) -> None:
        """Answer for a repository's former id as the Hub does: with a redirect to the one of today."""
        self._renamed[former] = repo_id

    def gate(self, repo_id: str) -> None:
        """Ask for an agreement before files of the repository are given."""
        self._repos[repo_id].gated = True

    def fault(
        self, pattern: str, kind: Fault, argument: Any = None, *, times: float = float("inf"), method: str = "GET"
    ) -> None:
        """Spoil the next `times` answers to `method` whose path matches a glob.

        truncate: close after `argument` bytes. reset: break the connection after `argument` bytes. flip: change the
        byte at `argument`. drop: close at once. drip: 1,000 bytes every `argument` seconds. status: answer with the
        status `argument`. throttle: 429 with Retry-After `argument`. redirect: to the same path at `argument`. slow:
        wait `argument` seconds. hold: wait for the event `argument`.
        """
        with self._lock:
            self._rules.append(_Rule(pattern, kind, times, argument, method))

    def heal(self) -> None:
        """Answer without faults from now on."""
        with self._lock:
            self._rules.clear()

    def clear(self) -> None:
        """Forget repositories, faults and requests."""
        self.heal()
        self._repos.clear()
        self._renamed.clear()
        self.log.clear()

    def commit(self, repo_id: str, revision: str = "main") -> str:
        """Return the commit that a branch or tag points to."""
        return self._repos[repo_id].refs[revision]

    def requests(self, substring: str = "") -> list[Request]:
        """Return the requests seen whose path holds `substring`."""
        with self._lock:
            return [request for request in self.log if substring in request.path]

    def _saw(self, request: Request) -> None:
        with self._lock:
            self.log.append(request)

    def _fault_for(self, method: str, path: str) -> _Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.times > 0 and rule.method == method and fnmatchcase(path, rule.pattern):
                    rule.times -= 1
                    return rule
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away, or a fault that closed the connection

    def close_connections(self) -> None:
        """A kept-alive connection would still be answered after the port is closed."""
        for request in self._open:
            try:
                request.shutdown(2)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub._saw(Request(self.command, self.path, _lower(self.headers)))
        rule = self.hub._fault_for(self.command, path)
        if rule is not None and rule.kind == "drop":
            self.close_connection = True
            return
        if rule is not None and rule.kind == "status":
            return self._send(rule.argument, b"no")
        if rule is not None and rule.kind == "throttle":
            return self._send(429, b"busy", {"Retry-After": str(rule.argument)})
        if rule is not None and rule.kind == "redirect":
            return self._send(302, b"", {"Location": f"{rule.argument}{self.path}"})
        if rule is not None and rule.kind == "slow":
            time.sleep(rule.argument)
        if rule is not None and rule.kind == "hold":
            rule.argument.wait(60)
        for former, repo_id in self.hub._renamed.items():
            if path.startswith((f"/{former}/", f"/api/models/{former}/")) or path == f"/api/models/{former}":
                return self._send(307, b"", {"Location": self.path.replace(former, repo_id, 1)})
        if api := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(/.*)?)?", path):
            return self._api(*api.groups())
        if file := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._file(*file.groups(), body=body, rule=rule)
        self._send(404, b"no such page")

    def _find(self, repo_id: str, revision: str | None) -> tuple[_Repo, str] | None:
        repo = self.hub._repos.get(repo_id)
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return None
        commit = repo.refs.get(revision or "main", revision or "")
        if commit not in repo.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def _api(self, repo_id: str, kind: str | None, revision: str | None, rest: str | None) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        if kind != "tree":
            siblings = [{"rfilename": name} for name in files]
            gated = "manual" if repo.gated else False
            facts = {
                "_id": "0",
                "id": repo_id,
                "sha": commit,
                "siblings": siblings,
                "private": False,
                "gated": gated,
                "tags": [],
            }
            return self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
        if rest:
            return self._error(404, "EntryNotFound", "no such folder")
        rows: list[dict[str, Any]] = []
        for name, content in files.items():
            row: dict[str, Any] = {"type": "file", "oid": _oid(content), "size": len(content), "path": name}
            if _is_lfs(name):
                pointer = f"version https://git-lfs.github.com/spec/v1\n{hashlib.sha256(content).hexdigest()}\n"
                row["oid"] = _oid(pointer.encode())  # git keeps the pointer, not the content
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
            rows.append(row)
        self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

    def _file(self, repo_id: str, revision: str, name: str, *, body: bool, rule: _Rule | None) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        repo, commit = found
        if repo.gated:
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        content = repo.commits[commit].get(name)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        etag = hashlib.sha256(content).hexdigest() if _is_lfs(name) else _oid(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if rule is not None and rule.kind == "flip":
            content = content[: rule.argument] + bytes([content[rule.argument] ^ 0xFF]) + content[rule.argument + 1 :]
        self._send(206 if start else 200, content[start:], headers, body=body, rule=rule)

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        body: bool = True,
        rule: _Rule | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body or self.command == "HEAD":
            return
        if rule is not None and rule.kind == "drip":
            for begin in range(0, len(content), 1000):
                self.wfile.write(content[begin : begin + 1000])
                time.sleep(rule.argument)
            return
        broken = rule is not None and rule.kind in ("truncate", "reset")
        self.wfile.write(content[: rule.argument] if rule is not None and broken else content)
        if broken:
            self.close_connection = True
        if rule is not None and rule.kind == "reset":
            # Lingering for 0 s turns the close into a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.flush()
            self.connection.close()


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".h5", ".msgpack"))
