"""Keep converted networks on disk between processes.

An entry is a folder of files under a key that names everything its contents depend on. It is complete or absent, its
files are checked against their recorded SHA-256 as they are read, and a broken one counts as absent: the cache changes
how long a start takes, never a result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distill.core.atomic import new_folder
from distill.core.version import VERSION

VARIABLE = "DISTILL_CACHE"  # folder of the cache; `off` disables it
_RECORD = "record.json"
_KEPT = 32  # entries; the oldest ones are removed
_OLD = 3600  # seconds after which the unfinished folder of another process is removed
_PACKAGES = ("torch", "openvino", "nncf", "segmentation-models-pytorch", "timm")
_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("students", "distill/core/affinity.py", "distill/core/affinity_conventions.py")


def cache_folder() -> Path | None:
    """Return the folder of the cache, which may not exist yet; None if it is disabled."""
    given = os.environ.get(VARIABLE, "").strip()
    if given.lower() == "off":
        return None
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(home) if home else Path("~/.cache").expanduser()) / "distill"


def read_entry(key: Mapping[str, str]) -> dict[str, bytes] | None:
    """Return the files of an entry by name; None if it is absent or broken.

    Args:
        key: what the contents depend on, in addition to the versions of this package and of the libraries.
    """
    folder = _path(key)
    if folder is None:
        return None
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in record["files"]}
        if any(hashlib.sha256(data).hexdigest() != record["files"][name] for name, data in files.items()):
            return None
        with suppress(OSError):
            os.utime(folder)  # recently used entries are kept
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files


def write_entry(key: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    """Write an entry, if a cache is enabled and its folder can be written to.

    Args:
        key: see `read_entry`.
        files: contents by name.
    """
    folder = _path(key)
    if folder is None:
        return

    def make_room() -> None:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)  # broken, or another process was faster: equal contents

    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _prune(folder.parent)
        with new_folder(folder, make_room) as made:
            for name, data in files.items():
                (made / name).write_bytes(data)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            (made / _RECORD).write_text(json.dumps({"key": dict(key), "files": digests}), encoding="utf-8")


def cached(key: Mapping[str, str] | None, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """Return the files of an entry, which are made and kept if it is absent.

    Args:
        key: see `read_entry`; None: contents that are not kept.
        make: returns the files.
    """
    found = None if key is None else read_entry(key)
    if found is None:
        found = make()
        if key is not None:
            write_entry(key, found)
    return found


def _path(key: Mapping[str, str]) -> Path | None:
    root = cache_folder()
    if root is None:
        return None
    text = json.dumps({**_versions(), **key}, sort_keys=True)
    return root / "networks" / hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the code that makes the contents, and a digest of its own source."""
    found = {"distill": VERSION}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    digest = hashlib.sha256()
    for source in _SOURCES:
        path = _ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return found | {"source": digest.hexdigest()}


def _prune(folder: Path) -> None:
    """Remove the oldest entries, and what killed processes left."""
    used: list[tuple[float, Path]] = []
    for entry in folder.iterdir():
        with suppress(OSError):
            used.append((entry.stat().st_mtime, entry))
    whole = sorted((one for one in used if not one[1].name.startswith(".")), reverse=True)
    left = [one for one in used if one[1].name.startswith(".") and one[0] < time.time() - _OLD]
    for _, entry in (*whole[_KEPT - 1 :], *left):
        shutil.rmtree(entry, ignore_errors=True)
