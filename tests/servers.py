"""Servers on localhost for tests: files over HTTP with byte ranges, and as much of S3 as tensorstore asks for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """What a server answers with.

    Attributes:
        files: content by path without the leading slash; of S3 the path begins with the bucket.
        denied: paths that are answered with 403.
        missing_is_denied: answer 403 where there is nothing, as buckets without the right to list do.
        asked: every request, such as `GET /a/zarr.json`.
        authorised: the last request's credentials.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.files = folder, dict[str, bytes]()
        self.denied: set[str] = set()
        self.missing_is_denied = False
        self.asked: list[str] = []
        self.authorised: str | None = None
        self.refuse_writing = False

    def get(self, key: str) -> bytes | None:
        """Content of a path; None where there is nothing."""
        if self.folder is None:
            return self.files.get(key)
        path = self.folder / key
        return path.read_bytes() if path.is_file() else None


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """Address of a server of a store while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            key, query = unquote(url.path).lstrip("/"), parse_qs(url.query)
            store.asked.append(f"{self.command} /{key}")
            store.authorised = self.headers.get("Authorization")
            if "list-type" in query:
                self.list(key.strip("/"), query.get("prefix", [""])[0])
                return
            body = store.get(key)
            if key in store.denied or (body is None and store.missing_is_denied):
                self.answer(403, b"<Error>denied</Error>")
                return
            if body is None:
                self.answer(404)
                return
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if not wanted:
                self.answer(200, body, ETag=tag)
                return
            first = int(wanted[1]) if wanted[1] else max(0, len(body) - int(wanted[2]))
            last = min(int(wanted[2]), len(body) - 1) if wanted[1] and wanted[2] else len(body) - 1
            if first > last:
                self.answer(416, Content_Range=f"bytes */{len(body)}")
                return
            self.answer(206, body[first : last + 1], ETag=tag, Content_Range=f"bytes {first}-{last}/{len(body)}")

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            key = unquote(urlsplit(self.path).path).lstrip("/")
            store.asked.append(f"PUT /{key}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if store.refuse_writing or key in store.denied:
                self.answer(403, b"<Error>denied</Error>")
                return
            store.files[key] = body
            self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

        def list(self, bucket: str, prefix: str) -> None:
            names = sorted(key.removeprefix(f"{bucket}/") for key in store.files if key.startswith(f"{bucket}/"))
            found = [name for name in names if name.startswith(prefix)]
            entries = "".join(f"<Contents><Key>{escape(n)}</Key><Size>1</Size></Contents>" for n in found)
            body = f"<ListBucketResult><KeyCount>{len(found)}</KeyCount>{entries}</ListBucketResult>"
            self.answer(200, body.encode(), Content_Type="application/xml")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
