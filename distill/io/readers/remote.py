"""Where a source lies: a path of this machine, or a folder behind http, S3 or Google Cloud Storage.

Local files are read directly, remote ones by tensorstore, whose threads make a later fork of the process unsafe
in the child.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from distill.core.errors import SourceError
from distill.core.reasons import json_object, read_text, reason

# Three attempts, at most some seconds: an address that is wrong should fail soon.
_RETRIES = {"max_retries": 3, "initial_delay": "500ms", "max_delay": "2s"}
_CONTEXT = {f"{name}_request_retries": _RETRIES for name in ("http", "s3", "gcs")}
_KINDS = {"precomputed": "precomputed", "neuroglancer-precomputed": "precomputed", "n5": "n5"}
_KINDS |= dict.fromkeys(("zarr", "zarr2", "zarr3"), "zarr")
_PREFIX = re.compile(r"(precomputed|neuroglancer-precomputed|n5|zarr[23]?)://(?=[a-z0-9]+://)")
_PIPE = re.compile(r"/*\|(neuroglancer-precomputed|n5|zarr[23]?):(.*)")
_ADDRESS = re.compile(r"(https?|s3|gs)://([^/]+)/*(.*)")


_DOCUMENT = 256 * 2**20  # bytes of metadata, more is none


@dataclass(frozen=True)
class Remote:
    """A folder that is not on this machine.

    Attributes:
        root: `http://host[:port]`, `https://host[:port]`, `s3://bucket` or `gs://bucket`.
        path: below the root, without slashes at its ends; empty for the root itself.
    """

    root: str
    path: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.root, f"{self.path}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.root}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Return the extension of the name, with its dot."""
        return Path(self.name).suffix


Place = Path | Remote


@dataclass(frozen=True)
class Address:
    """What the text of a remote source says.

    Attributes:
        place: the folder; a path where the text names a file of this machine by `file://`.
        dataset: what follows the last colon; None without one.
        kind: 'zarr', 'n5' or 'precomputed' where the text names it in Neuroglancer's manner; else None.
    """

    place: Place
    dataset: str | None
    kind: str | None


def parse_address(text: str) -> Address | None:
    """Read `[KIND://]SCHEME://HOST/PATH[:DATASET]` or `SCHEME://HOST/PATH/|KIND:DATASET`; None for a local path.

    Raises:
        SourceError: a scheme or host that is not known.
    """
    prefix = _PREFIX.match(text)
    kind = _KINDS[prefix[1]] if prefix else None
    text = text[prefix.end() :] if prefix else text
    pipe = _PIPE.search(text)
    dataset = None
    if pipe:
        kind, dataset, text = _KINDS[pipe[1]], pipe[2].strip("/") or None, text[: pipe.start()]
    if text.startswith("file://"):
        return Address(_file(text), dataset, kind)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        if prefix or pipe or re.match(r"[a-z0-9]+://", text):
            raise SourceError(
                f"{text}: found no address, expected http://, https://, s3:// or gs:// and host or bucket"
            )
        return None
    scheme, host, path = found.groups()
    if not pipe:
        path, _, after = path.rpartition(":") if ":" in path else (path, "", "")
        dataset = after.strip("/") or None
    return Address(Remote(f"{scheme}://{host}", path.strip("/")), dataset, kind)


def local_path(text: str) -> Path:
    """Return a path as the user writes it; `~` is the home folder."""
    return Path(os.path.expanduser(text)) if text.startswith("~") and not os.path.lexists(text) else Path(text)


def _file(text: str) -> Path:
    """Return the path of a `file://` address, whose odd characters may be written as %20 and the like."""
    path = text.removeprefix("file://").removeprefix("localhost")
    plain = unquote(path)
    return local_path(plain if plain != path and not os.path.lexists(path) else path)


def kvstore(place: Place) -> dict[str, Any]:
    """Return tensorstore's name of a folder.

    S3 takes credentials, region and endpoint from the usual places; AWS_NO_SIGN_REQUEST=YES reads without credentials,
    AWS_ENDPOINT_URL names a server other than Amazon's.
    """
    if isinstance(place, Path):
        return {"driver": "file", "path": f"{os.path.realpath(place)}/"}
    scheme, _, host = place.root.partition("://")
    path = f"{place.path}/".lstrip("/")
    if scheme in ("http", "https"):
        return {"driver": "http", "base_url": place.root, "path": f"/{path}", "context": _CONTEXT}
    spec: dict[str, Any] = {"driver": {"s3": "s3", "gs": "gcs"}[scheme], "bucket": host, "path": path}
    if scheme == "s3":
        endpoint, region = os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_REGION")
        if endpoint:
            spec["endpoint"] = endpoint
        if region or endpoint:
            spec["aws_region"] = region or "us-east-1"
        if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
            spec["aws_credentials"] = {"type": "anonymous"}
        elif "AWS_ACCESS_KEY_ID" in os.environ:
            # Left to itself, the library says on standard error which files it has looked for before.
            spec["aws_credentials"] = {"type": "environment"}
    return spec | {"context": _CONTEXT}


def read_document(place: Place, name: str) -> str | None:
    """Return the text of one file of a folder; None where there is none, or where it may not be read.

    Many buckets answer "forbidden" for files that do not exist; `check_reachable` tells the two apart in its message.

    Raises:
        SourceError: the host cannot be reached or gives another error, or the file cannot be read or holds no text.
    """
    if isinstance(place, Path):
        file = place / name
        if not file.is_file():
            return None
        if (size := file.stat().st_size) > _DOCUMENT:
            raise SourceError(f"{file}: found {size:,} bytes of metadata, expected at most {_DOCUMENT:,}")
        return read_text(file)
    try:
        return _fetch(place, name)
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise SourceError(f"{place}/{name}: cannot be read: {reason(error)}") from None
        if _denied(error):
            return None
        raise SourceError(f"{place}/{name}: cannot be read: {reason(error)}") from None


def read_object(place: Place, name: str) -> dict[str, Any] | None:
    """Read a JSON object of a folder; None as for `read_document`.

    Raises:
        SourceError: as `read_document`, or it is no JSON, or another value.
    """
    text = read_document(place, name)
    return None if text is None else json_object(f"{place}/{name}", text)


def check_reachable(place: Remote, name: str) -> None:
    """Report a file that may not be read.

    Raises:
        SourceError: access is denied.
    """
    try:
        _fetch(place, name)
    except ValueError as error:
        if _denied(error):
            raise SourceError(f"{place}/{name}: cannot be read: access denied (HTTP 403)") from None
        raise SourceError(f"{place}/{name}: cannot be read: {reason(error)}") from None


def above(place: Place) -> Iterator[tuple[Place, str]]:
    """Return the folders above one, from near to far, each with the way down from it."""
    if isinstance(place, Path):
        whole = Path(os.path.abspath(place))
        for parent in whole.parents:
            yield parent, whole.relative_to(parent).as_posix()
        return
    parts = place.path.split("/")
    for at in range(len(parts) - 1, 0, -1):
        yield Remote(place.root, "/".join(parts[:at])), "/".join(parts[at:])


def _fetch(place: Remote, name: str) -> str | None:
    import tensorstore

    found = tensorstore.KvStore.open(kvstore(place)).result().read(name).result()
    return bytes(found.value).decode("utf-8") if found.state == "value" else None


def _denied(error: BaseException) -> bool:
    return "PERMISSION_DENIED" in str(error) or "HTTP code 403" in str(error)
