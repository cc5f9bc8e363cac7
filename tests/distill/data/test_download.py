"""Downloads against a server that breaks off, lies, changes the file, and comes back."""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from distill.core.errors import SourceError
from distill.data import download
from distill.data.download import fetch

BODY = bytes(range(256)) * 4000  # four blocks
SHA = "sha256:" + hashlib.sha256(BODY).hexdigest()


@dataclass
class Site:
    """What the server does, and what it was asked."""

    body: bytes = BODY
    etag: str | None = '"one"'
    ranges: bool = True
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)  # bytes to send before breaking off, one an answer
    failures: list[int] = field(default_factory=list)  # statuses to answer first
    lengthless: bool = False
    wrong: bool = False  # answer every request for the rest with another part
    asked: list[str | None] = field(default_factory=list)  # the Range of every request
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on localhost."""
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            span = self.headers.get("Range")
            state.asked.append(span)
            if state.failures:
                self.send_error(state.failures.pop(0))
                return
            start, total = 0, len(state.body)
            if span and state.ranges and self.headers.get("If-Range") == state.etag:
                found = re.fullmatch(r"bytes=(\d+)-", span)
                assert found
                start = int(found[1])
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            if start:
                first = 0 if state.wrong else start
                self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            if not state.lengthless:
                self.send_header("Content-Length", str(total - start))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Type", state.kind)
            self.end_headers()
            rest = state.body[start:]
            self.wfile.write(rest[: state.cuts.pop(0)] if state.cuts else rest)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is part of these tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/file.hdf"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def quiet(*_: object) -> None:
    """Neither progress nor notes."""


def get(site: Site, target: Path, **more: Any) -> list[tuple[int, int | None]]:
    reported: list[tuple[int, int | None]] = []
    settings = {"checksum": SHA, "pause": 0.0, "retries": 2, "note": quiet} | more
    fetch(site.url, target, on_bytes=lambda have, total: reported.append((have, total)), **settings)
    return reported


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone(site: Site, tmp_path: Path) -> None:
    reported = get(site, tmp_path / "new" / "file.hdf")
    assert (tmp_path / "new" / "file.hdf").read_bytes() == BODY
    assert names(tmp_path / "new") == ["file.hdf"]
    assert reported[-1] == (len(BODY), len(BODY))
    assert [have for have, _ in reported] == sorted(have for have, _ in reported)


def test_what_is_there_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "file.hdf"
    target.write_bytes(BODY)
    assert not fetch(site.url, target, checksum=SHA, on_bytes=quiet, note=quiet)
    target.write_bytes(b"mine")
    with pytest.raises(SourceError, match=r"file\.hdf: found sha256 .* it is not changed"):
        get(site, target)
    assert (target.read_bytes(), site.asked) == (b"mine", [])


def test_goes_on_where_the_connection_broke(site: Site, tmp_path: Path) -> None:
    site.cuts = [300_000, 1, 400_000]
    lines: list[str] = []
    get(site, tmp_path / "file.hdf", retries=0, note=lines.append)
    assert (tmp_path / "file.hdf").read_bytes() == BODY
    assert lines[0] == "file.hdf: the connection ended after 300,000 of 1,024,000 bytes; retrying in 0 s"
    assert len(lines) == 3
    assert site.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=700001-"]


def test_goes_on_in_another_process(site: Site, tmp_path: Path) -> None:
    site.cuts = [500_000, 0, 0, 0]
    with pytest.raises(SourceError, match=r"the connection ended after 500,000 of 1,024,000 bytes, 3 times in a row"):
        get(site, tmp_path / "file.hdf")
    assert names(tmp_path) == ["file.hdf.part", "file.hdf.part.json"]
    get(site, tmp_path / "file.hdf")
    assert site.asked[-1] == "bytes=500000-"
    assert (tmp_path / "file.hdf").read_bytes() == BODY
    assert names(tmp_path) == ["file.hdf"]


def test_a_part_that_was_whole_needs_no_byte(site: Site, tmp_path: Path) -> None:
    site.cuts = [500_000, 0, 0, 0]
    with pytest.raises(SourceError):
        get(site, tmp_path / "file.hdf")
    (tmp_path / "file.hdf.part").write_bytes(BODY)  # killed between the last byte and the new name
    asked = len(site.asked)
    get(site, tmp_path / "file.hdf")
    assert (tmp_path / "file.hdf").read_bytes() == BODY
    assert site.asked[asked:] == [f"bytes={len(BODY)}-"]


def test_a_server_that_never_gets_further_is_left(site: Site, tmp_path: Path) -> None:
    site.wrong, site.cuts = True, [500_000, 0] * 20
    with pytest.raises(SourceError, match="3 times in a row"):
        get(site, tmp_path / "file.hdf")
    assert len(site.asked) == 4
    site.cuts = []
    get(site, tmp_path / "file.hdf")
    assert (tmp_path / "file.hdf").read_bytes() == BODY


@pytest.mark.parametrize("why", ["changed", "no ranges", "no validator", "weak", "other address", "longer than it"])
def test_starts_anew_where_going_on_would_mix_files(site: Site, tmp_path: Path, why: str) -> None:
    target, old = tmp_path / "file.hdf", site.body
    if why == "no validator":
        site.etag = None
    if why == "weak":
        site.etag = 'W/"one"'
    site.body = bytes(len(BODY))
    site.cuts = [500_000, 0, 0, 0]
    with pytest.raises(SourceError):
        get(site, target)
    site.body = old
    if why == "changed":
        site.etag = '"two"'
    if why == "no ranges":
        site.ranges = False
    if why == "other address":
        site.url += "?other"
    if why == "longer than it":
        (tmp_path / "file.hdf.part").write_bytes(bytes(2 * len(BODY)))
    get(site, target)
    assert target.read_bytes() == BODY


def test_a_part_of_another_length_is_refused(site: Site, tmp_path: Path) -> None:
    site.cuts = [500_000, 0, 0, 0]
    with pytest.raises(SourceError):
        get(site, tmp_path / "file.hdf")
    site.body = BODY + b"more"  # under the same ETag
    get(site, tmp_path / "file.hdf", checksum="sha256:" + hashlib.sha256(site.body).hexdigest())
    assert (tmp_path / "file.hdf").read_bytes() == site.body


def test_a_server_in_trouble_is_asked_again_and_not_for_ever(site: Site, tmp_path: Path) -> None:
    site.failures = [500, 503]
    get(site, tmp_path / "file.hdf")
    assert len(site.asked) == 3
    site.failures = [500] * 9
    with pytest.raises(SourceError, match=r"the server answered 500 .*, 3 times in a row"):
        get(site, tmp_path / "other.hdf")
    assert len(site.asked) == 6


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(site: Site, tmp_path: Path, status: int) -> None:
    site.failures = [status]
    with pytest.raises(SourceError, match=rf"{site.url}: the server answered {status}"):
        get(site, tmp_path / "file.hdf")
    assert len(site.asked) == 1


def test_another_file_than_expected_does_not_stay(site: Site, tmp_path: Path) -> None:
    site.body = BODY[:-1] + b"x"
    with pytest.raises(SourceError, match=rf"found sha256 .*, expected {SHA[7:]}; what was downloaded is removed"):
        get(site, tmp_path / "file.hdf")
    assert names(tmp_path) == []
    md5 = "md5:" + hashlib.md5(site.body, usedforsecurity=False).hexdigest()
    get(site, tmp_path / "file.hdf", checksum=md5)
    assert (tmp_path / "file.hdf").read_bytes() == site.body


def test_a_web_page_is_no_file(site: Site, tmp_path: Path) -> None:
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(SourceError, match="found a web page, expected a file"):
        get(site, tmp_path / "file.hdf")
    assert not (tmp_path / "file.hdf").exists()


def test_a_server_that_tells_no_length(site: Site, tmp_path: Path) -> None:
    site.lengthless = True
    reported = get(site, tmp_path / "file.hdf")
    assert reported[-1] == (len(BODY), None)
    assert (tmp_path / "file.hdf").read_bytes() == BODY


def test_a_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: Usage)
        with pytest.raises(SourceError, match=r"found 1,000 bytes free on the disk, expected 1,024,000 or more"):
            get(site, tmp_path / "file.hdf")

    opened = Path.open

    class Full:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, block: bytes) -> int:
            if self.file.tell() > 400_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

    def full(path: Path, mode: str = "r", **more: Any) -> Any:
        file = opened(path, mode, **more)
        return Full(file) if path.suffix == ".part" and mode == "a+b" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(SourceError, match=r"file\.hdf: cannot be written or read: No space left on device"):
            get(site, tmp_path / "file.hdf")
    have = (tmp_path / "file.hdf.part").stat().st_size
    assert 0 < have < len(BODY)
    get(site, tmp_path / "file.hdf")
    assert site.asked[-1] == f"bytes={have}-"
    assert (tmp_path / "file.hdf").read_bytes() == BODY


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no connection: .*, 2 times in a row"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", on_bytes=quiet, note=quiet, retries=1, pause=0.0)
    with pytest.raises(SourceError, match="expected an address that begins with http"):
        fetch("file:///etc/hosts", tmp_path / "x", on_bytes=quiet, note=quiet)


def test_two_processes_do_not_write_one_part(site: Site, tmp_path: Path) -> None:
    with (
        download._locked(tmp_path / "file.hdf", tmp_path / "file.hdf.part"),
        pytest.raises(SourceError, match="another process is downloading it"),
    ):
        get(site, tmp_path / "file.hdf")
