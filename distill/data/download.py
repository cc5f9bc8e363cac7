"""Resumable HTTP download, renamed into place once complete and verified.

The partial file is NAME.part next to the target, with a record of its origin in NAME.part.json. If the server does not
support resuming, or the file has changed, the download restarts; data of two files are never combined.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from distill.core.atomic import flush, replacing
from distill.core.errors import SourceError
from distill.core.notes import Note

OnBytes = Callable[[int, int | None], None]

_BLOCK = 2**18
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # status codes that may be temporary
_TIMEOUT = 60.0


@dataclass(frozen=True)
class _Known:
    """Record of the file, as described by the server, to which a part belongs."""

    url: str
    total: int | None
    validator: str | None  # strong ETag, otherwise Last-Modified


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other addresses, but never from https to one that anybody on the way may answer for."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        """Refuse to leave https."""
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise SourceError(f"{req.full_url}: the server sends on to {newurl}, expected an address of https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


class _BrokenOff(Exception):
    """The connection was lost, or the server asked to retry later."""


def fetch(
    url: str,
    target: Path,
    *,
    checksum: str | None = None,
    on_bytes: OnBytes,
    note: Note,
    retries: int = 5,
    pause: float = 2.0,
) -> bool:
    """Download a file unless it already exists.

    Args:
        url: http or https.
        target: path on disk; its folder is created.
        checksum: `sha256:...` or `md5:...` of the whole file; None = only its size is checked.
        on_bytes: called with the bytes on disk and the size of the file, None if unknown.
        note: called with a message before each new attempt.
        retries: consecutive attempts without progress that are allowed.
        pause: seconds before the second of them, doubled for each further one.

    Returns:
        Whether anything was downloaded; False if a file of this name and checksum existed.

    Raises:
        SourceError: the server refuses, disconnects too often or sends a web page, the file is not the expected one, or
            the disk is full. The partial file is kept for the next attempt, unless it is invalid.
    """
    if target.exists():
        _check(target, checksum, kept=True)
        return False
    part, record = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    with _writing(target), _locked(target, part) as file:
        failures, most = 0, file.seek(0, os.SEEK_END)
        while True:
            try:
                _go_on(url, file, record, target, on_bytes)
                break
            except _BrokenOff as broken:
                have = file.seek(0, os.SEEK_END)
                failures = 0 if have > most else failures + 1
                most = max(have, most)
                if failures > retries:
                    raise SourceError(
                        f"{url}: {broken}, {failures} times in a row; {have:,} bytes are kept in {part}, repeat the "
                        "command to continue"
                    ) from None
                wait = pause * 2 ** max(0, failures - 1)
                note(f"{target.name}: {broken}; retrying in {wait:g} s")
                time.sleep(wait)
        file.flush()
        os.fsync(file.fileno())
        try:
            _check(part, checksum, kept=False)
        except SourceError:
            part.unlink()
            record.unlink(missing_ok=True)
            raise
        os.replace(part, target)
        record.unlink(missing_ok=True)
        flush(target.parent)
    return True


def verify(path: Path, checksum: str) -> None:
    """Compare the checksum of a file.

    Raises:
        SourceError: they differ, or the file cannot be read.
    """
    with _writing(path):
        _check(path, checksum, kept=True)


def _go_on(url: str, file: IO[bytes], note: Path, target: Path, on_bytes: OnBytes) -> None:
    """Request the missing part and append it until the file is complete."""
    have, known = file.seek(0, os.SEEK_END), _read_note(note)
    if have and (known is None or known.url != url or known.validator is None):
        have = _empty(file)
    headers = {"User-Agent": "distill", "Accept-Encoding": "identity"}
    if have and known is not None and known.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    with _answer(url, headers) as answer:
        if answer.status == 416:
            if known is not None and known.total == have == _total(answer):
                return
            _empty(file)
            raise _BrokenOff("the part that was there is none of the file")
        if answer.status == 206 and not _continues(answer, have, known):
            _empty(file)
            raise _BrokenOff("the server sent another part than the one that is missing")
        if answer.status != 206:
            have = _empty(file)
        kind = answer.headers.get_content_type()
        if kind == "text/html":
            raise SourceError(f"{url}: found a web page, expected a file; open it in a browser")
        total = _total(answer)
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator is not None and validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified")
        _write_note(note, _Known(url, total, validator))
        _check_room(target, have, total)
        while block := _read(answer):
            file.write(block)
            have += len(block)
            on_bytes(have, total)
        file.flush()
        if total is not None and have != total:
            if have > total:
                _empty(file)
            raise _BrokenOff(f"the connection ended after {have:,} of {total:,} bytes")


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """Open the server's response, including 416."""
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"{url}: expected an address that begins with http:// or https://")
    try:
        opened = _OPENER.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            opened = error
        elif error.code in _AGAIN:
            error.close()
            raise _BrokenOff(f"the server answered {error.code} {error.reason}") from None
        else:
            error.close()
            raise SourceError(f"{url}: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise SourceError(f"{url}: the server's certificate is not valid: {error.reason.verify_message}") from None
        raise _BrokenOff(f"no connection: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"no connection: {error or type(error).__name__}") from None
    with opened:
        yield opened


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"the connection broke: {error or type(error).__name__}") from None


def _continues(answer: Any, have: int, known: _Known | None) -> bool:
    """Return whether a partial response begins where the part ends, and belongs to the same file."""
    span = answer.headers.get("Content-Range", "")
    total = _total(answer)
    same = known is not None and (known.total is None or known.total == total)
    return same and span.startswith(f"bytes {have}-")


def _total(answer: Any) -> int | None:
    """Return the size of the whole file as given by the response."""
    span = answer.headers.get("Content-Range")
    text = span.rpartition("/")[2] if span is not None else answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _check_room(target: Path, have: int, total: int | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if total is not None and total - have > free:
        raise SourceError(f"{target}: found {free:,} bytes free on the disk, expected {total - have:,} or more")


def _check(path: Path, checksum: str | None, *, kept: bool) -> None:
    if checksum is None:
        return
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        what = "it is not changed" if kept else "what was downloaded is removed"
        raise SourceError(f"{path}: found {kind} {digest.hexdigest()}, expected {expected}; {what}")


def _empty(file: IO[bytes]) -> int:
    file.seek(0)
    file.truncate()
    return 0


def _read_note(note: Path) -> _Known | None:
    try:
        return _Known(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_note(note: Path, known: _Known) -> None:
    if _read_note(note) != known:
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(asdict(known)) + "\n", encoding="utf-8")


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{target}: cannot be written or read: {error.strerror or error}") from error


@contextmanager
def _locked(target: Path, part: Path) -> Iterator[IO[bytes]]:
    """Open the partial file for appending, locked for this process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"{part}: another process is downloading it, expected one at a time") from None
        yield file
