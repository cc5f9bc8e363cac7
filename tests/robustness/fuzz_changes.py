"""Damage of files: bytes, sizes, and values of what a format says of itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

Random = np.random.Generator
_METADATA = ("info", ".zarray", ".zattrs", ".zgroup")
ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", " ", "NaN", "\u00e9\n", [], {}, [[]], {"a": 1}, [None], ["a", 1, None]),
    *(-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**12, 10**30, 10**400),
    *(-(10**12), 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *("..", "../../victim", "../victim/a.txt", "VICTIM", "/etc", "/dev/zero", "a/../../victim", "a" * 5000, "\0"),
    *([1, 2], [1, 2, 3, 4, 5], [0, 0, 0], [-1, -1, -1], [10**9, 10**9, 10**9], [1e308] * 3, ["6", "6", "30"]),
)


def change_bytes(path: Path, random: Random) -> str:
    """Damage a file without regard for what it holds."""
    data = bytearray(path.read_bytes())
    size = len(data)
    kind = str(
        random.choice(["flip", "flip", "flip head", "flip head", "cut", "zero", "huge", "insert", "swap", "empty"])
    )
    if not size:
        kind = "insert"
    at = int(random.integers(max(size, 1)))
    if kind == "flip":
        for place in random.integers(size, size=int(random.integers(1, 9))):
            data[place] ^= 1 << int(random.integers(8))
    elif kind == "flip head":
        for place in random.integers(min(size, 600), size=int(random.integers(1, 4))):
            data[place] = int(random.integers(256))
    elif kind == "cut":
        del data[at:]
    elif kind == "zero":
        data[at : at + int(random.integers(1, 400))] = bytes(len(data[at : at + int(random.integers(1, 400))]))
    elif kind == "huge":
        place = int(random.integers(min(size, 2000))) // 4 * 4
        data[place : place + 4] = random.choice(np.array([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000], np.uint32)).tobytes()
    elif kind == "insert":
        data[at:at] = random.bytes(int(random.integers(1, 64)))
    elif kind == "swap":
        length = int(random.integers(1, max(2, size // 4)))
        data[at : at + length] = bytes(data[:length])
    else:
        data = bytearray(random.choice([b"", b"<!DOCTYPE html><html>404</html>", b"\0" * 512, b"{}", b"null"]))
    path.write_bytes(data)
    return kind


def change_json(path: Path, random: Random) -> str:
    """Change a value somewhere in a JSON document, or in one of its lines where each is a document."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    at = int(random.integers(max(1, len(lines))))
    try:
        document, what = _changed(json.loads(lines[at]), random)
        lines[at] = json.dumps(document)
    except (ValueError, IndexError):
        return change_bytes(path, random)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return what


def change_yaml(path: Path, random: Random) -> str:
    """Change a value somewhere in a YAML document."""
    try:
        document, what = _changed(yaml.safe_load(path.read_text()), random)
        text = yaml.safe_dump(document)
    except (ValueError, yaml.YAMLError):
        return change_bytes(path, random)
    path.write_text(text)
    return what


def _changed(document: Any, random: Random) -> tuple[Any, str]:
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            visit(value)

    visit(document)
    if not places or random.random() < 0.03:
        return ODD[int(random.integers(len(ODD)))], "whole"
    node, key = places[int(random.integers(len(places)))]
    kind = str(random.choice(["value", "value", "value", "delete", "type", "number", "deep"]))
    value = node[key]
    if kind == "delete":
        del node[key]
    elif kind == "type":
        node[key] = str(value) if not isinstance(value, str) else [value]
    elif kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        node[key] = value * random.choice([-1, 2, 3, 1000, 10**9]).item() + int(random.integers(-2, 3))
    elif kind == "deep":
        inner: Any = value
        for _ in range(int(random.choice([2, 50, 900]))):
            inner = [inner]
        node[key] = inner
    else:
        node[key] = ODD[int(random.integers(len(ODD)))]
    return document, f"{kind} of {key}"


def change_words(path: Path, random: Random) -> str:
    """Change a word of a text of numbers, such as an SWC file."""
    lines = path.read_text().splitlines()
    at = int(random.integers(len(lines)))
    words = lines[at].split() or ["1"]
    place = int(random.integers(len(words)))
    kind = str(random.choice(["word", "word", "drop", "twice", "line"]))
    if kind == "word":
        words[place] = str(random.choice(["nan", "inf", "-1", "0", "1e400", "9" * 5000, "x", "1.5", "-1e308", "0x10"]))
    elif kind == "drop":
        del words[place]
    elif kind == "twice":
        words.append(words[place])
    lines[at] = " ".join(words)
    if kind == "line":
        lines.insert(int(random.integers(len(lines))), lines[at])
    path.write_text("\n".join(lines) + "\n")
    return kind


def change_hdf5(path: Path, random: Random) -> str:
    """Change attributes, shapes, types and links of an HDF5 file."""
    kind = str(
        random.choice(["attribute", "shape", "type", "external", "loop", "virtual", "storage", "rename", "chunk"])
    )
    with h5py.File(path, "a") as file:
        raw = file["volumes/raw"]
        if kind == "attribute":
            value = ODD[int(random.integers(len(ODD)))]
            name = str(random.choice(["resolution", "offset", "units", "axes", "axistags", "voxel_size"]))
            try:
                raw.attrs[name] = value
            except (TypeError, ValueError, OverflowError, AttributeError):
                raw.attrs[name] = np.array([np.nan, 0, 1])
            return f"attribute {name}"
        keep = dict(raw.attrs)
        values = raw[...]
        if kind == "chunk":
            if raw.chunks:
                raw.id.write_direct_chunk((0, 0, 0), random.bytes(40))
            return kind
        del file["volumes/raw"]
        if kind == "shape":
            shape = [(0, 48, 40), (10**6, 10**6, 10**6), (48, 40), (4, 48, 40, 3), (1, 1, 4, 48, 40), ()]
            made = file.create_dataset("volumes/raw", shape=shape[int(random.integers(len(shape)))], dtype="u1")
        elif kind == "type":
            names = ["S5", "f8", "c16", [("a", "u1"), ("b", "f4")], "u8", h5py.string_dtype(), "f2", "?"]
            made = file.create_dataset("volumes/raw", shape=(4, 48, 40), dtype=names[int(random.integers(len(names)))])
        elif kind == "external":
            where = ["/etc/passwd", "../victim/a.txt", "missing.h5", path.name]
            file["volumes/raw"] = h5py.ExternalLink(where[int(random.integers(len(where)))], "volumes/raw")
            return kind
        elif kind == "loop":
            file["volumes/raw"] = h5py.SoftLink("/volumes/raw")
            return kind
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 48, 40), "u1")
            where = ["missing.h5", "../victim/a.txt", "/etc/passwd", "a%%.h5", "."]
            layout[...] = h5py.VirtualSource(where[int(random.integers(len(where)))], "volumes/raw", (4, 48, 40))
            made = file.create_virtual_dataset("volumes/raw", layout)
        elif kind == "storage":
            made = file.create_dataset(
                "volumes/raw", (4, 48, 40), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            )
        else:
            made = file.create_dataset("raw" if random.random() < 0.5 else "a" * 300, data=values)
        made.attrs.update(keep)
    return kind


def change_header(path: Path, random: Random) -> str:
    """Change the header of a safetensors file: its length, offsets, shapes or metadata."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kind = str(random.choice(["metadata", "metadata", "tensor", "length"]))
    if kind == "length":
        wrong = [0, 1, length - 1, length + 1, 2**31, 2**40, 2**63]
        path.write_bytes(struct.pack("<Q", wrong[int(random.integers(len(wrong)))]) + data[8:])
        return kind
    if kind == "metadata":
        about = header["__metadata__"]
        key = str(random.choice(list(about)))
        try:
            inner, what = _changed(json.loads(about[key]), random)
            about[key] = json.dumps(inner)
        except ValueError:
            about[key], what = str(ODD[int(random.integers(len(ODD)))]), "value"
        what = f"{key}: {what}"
    else:
        names = [name for name in header if name != "__metadata__"]
        header[str(random.choice(names))], what = _changed(header[str(random.choice(names))], random)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return what


def change_arrays(path: Path, random: Random) -> str:
    """Change the shape, type or numbers of an array of an NPZ file, or leave one out."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    name = str(random.choice(sorted(arrays)))
    one = arrays[name]
    kind = str(random.choice(["shape", "type", "values", "drop", "add"]))
    if kind == "shape":
        arrays[name] = one[..., None] if random.random() < 0.5 else one.ravel()[: one.size // 2]
    elif kind == "type":
        arrays[name] = one.astype(str(random.choice(["S3", "f8", "?", "i1", "c16", "U2"])))
    elif kind == "values":
        with np.errstate(all="ignore"):
            arrays[name] = (
                np.full_like(one, 0) + (-1 if one.dtype.kind in "iu" else np.nan) if one.dtype.kind in "iuf" else one
            )
    elif kind == "drop":
        del arrays[name]
    else:
        arrays["x" * 50] = np.arange(3)
    np.savez_compressed(path, **arrays)
    return f"{kind} of {name}"


def change_names(path: Path, random: Random) -> str:
    """Remove, empty or double a file, or put another kind of thing in its place."""
    kind = str(random.choice(["remove", "folder", "link", "copy"]))
    if kind == "copy":
        path.with_name(f"{path.stem}_2{path.suffix}").write_bytes(path.read_bytes())
        return kind
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(str(random.choice(["/dev/null", "nowhere", path.name, "/etc/passwd"])))
    return kind


def damage(root: Path, parts: tuple[str, ...], random: Random) -> str:
    """Damage a file, or one of a folder; returns what was done."""
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    if root.is_dir() and parts != ("*",):
        files = [file for file in files if any(file.relative_to(root).match(part) for part in parts)]
    about = [
        file for file in files if file.suffix in (".json", ".jsonl") or file.name in ("info", ".zarray", ".zattrs")
    ]
    file = files[int(random.integers(len(files)))]
    if about and random.random() < (0.6 if parts == ("*",) else 0.3):
        file = about[int(random.integers(len(about)))]
    own: Callable[[Path, Random], str] | None = {
        **dict.fromkeys((".json", ".jsonl", ""), change_json),
        **{".yaml": change_yaml, ".h5": change_hdf5, ".safetensors": change_header, ".swc": change_words},
        ".npz": change_arrays,
    }.get(file.suffix)
    if own is change_json and file not in about:
        own = None
    chosen = change_bytes
    if own is not None and random.random() < 0.65:
        chosen = own
    elif root.is_dir() and random.random() < 0.15:
        chosen = change_names
    whole = file.read_bytes()
    try:
        what = chosen(file, random)
    except (ValueError, RecursionError, OverflowError, TypeError, LookupError):  # no such change of this file
        file.write_bytes(whole)
        what = change_bytes(file, random)
    return f"{file.name if file != root else 'itself'}: {what}"
