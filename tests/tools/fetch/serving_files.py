"""A server of files that breaks off, refuses and answers as the hub does."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_REVISION = "1" * 40


@dataclass
class Site:
    """What a server has, and what it was asked.

    Attributes:
        files: {path: content}.
        repositories: {hub id: {name: content}}.
        ends: where in a file the next answers break off.
        gated: whether files of repositories are refused.
        asked: (path, Range header) of each GET.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    gated: bool = False
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):  # noqa: N802
            self.answer(body=False)

        def do_GET(self):  # noqa: N802
            site.asked.append((self.path, self.headers["Range"]))
            self.answer(body=True)

        def do_POST(self):  # noqa: N802
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(b"[]", {})

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
                return self.repository(found[1], "/tree/" in path)
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                content = site.repositories.get(found[1], {}).get(found[2])
                if site.gated:
                    return self.refuse(403, {"X-Error-Code": "GatedRepo"})
                if content is not None:
                    etag = hashlib.sha256(content).hexdigest()
                    return self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": _REVISION}, body)
            if path in site.files:
                return self.send(site.files[path], {}, body)
            return self.refuse(404, {"X-Error-Code": "RepoNotFound"})

        def repository(self, name: str, tree: bool) -> None:
            if name not in site.repositories:
                return self.refuse(404, {"X-Error-Code": "RepoNotFound"})
            rows = []
            for file, content in site.repositories[name].items():
                lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                own = {"size": len(content), "lfs": lfs | {"oid": lfs["sha256"]}}
                rows.append(
                    own | {"rfilename": file, "path": file, "type": "file", "oid": "0" * 40, "blobId": "0" * 40}
                )
            reply = rows if tree else {"id": name, "modelId": name, "sha": _REVISION, "siblings": rows}
            return self.send(json.dumps(reply).encode(), {"Content-Type": "application/json"})

        def refuse(self, code: int, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(key, value)
            self.end_headers()

        def send(self, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            begin = 0
            if site.ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
                begin = int(found[1])
                if begin >= len(content):
                    return self.refuse(416, {})
            self.send_response(206 if begin else 200)
            rest = content[begin:]
            own = {"Content-Length": str(len(rest)), "Content-Range": f"bytes {begin}-/{len(content)}"}
            for key, value in (own | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if body and site.ends and not self.path.startswith("/api/"):
                self.wfile.write(content[begin : site.ends.pop(0)])
                self.close_connection = True
            elif body:
                self.wfile.write(rest)
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        server.shutdown()
