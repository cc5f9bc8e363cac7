"""Describe a weights file on one screen: what network it holds, how it was trained, and how well it scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.models.header import WeightsHeader

_LONG = 100  # characters of a value
_LARGE = 1e9  # no score is as large


def format_header(path: Path, header: WeightsHeader) -> str:
    """Format the path and what is known of the network, one line each; what a file does not state has no line.

    Args:
        path: of the file.
        header: of the file. Its values may be of any JSON type: the file may be of any version, or altered.
    """
    lines = [(name, text) for name, text in _lines(path, header) if text]
    width = max(len(name) for name, _ in lines)
    return "\n".join([str(path), *(f"  {name.ljust(width)}  {text}" for name, text in lines)])


def _lines(path: Path, header: WeightsHeader) -> Iterator[tuple[str, str]]:
    config, notes = header.config, header.notes
    kind = " ".join(_text(config[key]) for key in ("kind", "encoder") if config.get(key))
    yield "network", f"{header.kind}, {kind}" if kind else header.kind
    size = path.stat().st_size / 1e6
    yield "parameters", f"{header.values:,} in {len(header.shapes)} tensors, {size:.1f} MB"
    yield "voxel size", _with(_text(notes.get("resolution") or config.get("resolution")), " nm (z, y, x)")
    yield "normalisation", _normalisation(config.get("normalisation"))
    yield "decoder", _decoder(config.get("decoder"))
    yield "scores", _scores(notes.get("validation"))
    for key, name in (("merge_threshold", "query"), ("flood_threshold", "flood")):
        yield f"threshold of {name}", _text(notes.get(key))
    yield "threshold of fragments", _text(config.get("threshold") if header.kind == "fragments" else None)
    yield from _training(notes)
    yield "published as", " ".join(_text(notes[key]) for key in ("published", "method") if notes.get(key))
    yield "version", _text(notes.get("version"))


def _normalisation(given: Any) -> str:
    if not isinstance(given, Mapping):
        return ""
    of_kind = {"percentile": ("low", "high"), "mean-std": ("mean", "std"), "local": ("mean", "std", "tile")}
    kind = _text(given.get("kind"))
    numbers = ", ".join(f"{key} {_text(given.get(key))}" for key in of_kind.get(kind, ()))
    return f"{kind} ({numbers})" if numbers else kind


def _decoder(given: Any) -> str:
    if not isinstance(given, Mapping) or not given:
        return ""
    parts = [_with(_text(given.get("refine")), " rounds"), f"queries {_text(given.get('queries'))}"]
    parts.append(f"prior {_text(given.get('prior'))}")
    block = given.get("block")
    if isinstance(block, list):
        parts.append(f"blocks of {_joined(block, ' x ')}")
    return ", ".join(part for part in parts if part)


def _scores(given: Any) -> str:
    if not isinstance(given, Mapping) or not given:
        return ""
    split, merge = (_number(given.get(key)) for key in ("voi_split", "voi_merge"))
    parts = [
        _before("VOI ", _number(given.get("voi"))) + (f" (split {split}, merge {merge})" if split and merge else ""),
        _before("ARAND ", _number(given.get("arand"))),
    ]
    found = ", ".join(part for part in parts if part)
    return _with(found, " on the validation part")


def _training(notes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step = notes.get("step")
    yield "trained for", f"{step:,} steps" if isinstance(step, int) else _text(step)
    data = notes.get("data")
    if not isinstance(data, Mapping):
        return
    for volume in _listed(data.get("volumes")) or [data]:
        if not isinstance(volume, Mapping):
            continue
        yield "trained on", _text(volume.get("raw"))
        yield "  labels", _text(volume.get("labels"))
        parts = ((name, volume.get(name)) for name in ("train", "validation", "test"))
        yield "  sections", ", ".join(f"{name} {_span(part)}" for name, part in parts if part)
    for volume in _listed(data.get("unlabelled")):
        yield "  without labels", _text(volume.get("raw") if isinstance(volume, Mapping) else volume)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _span(part: Any) -> str:
    if isinstance(part, list) and all(isinstance(one, list) for one in part):
        return " x ".join(map(_span, part))
    if isinstance(part, list) and len(part) == 2:
        return ":".join(map(_text, part))
    return _text(part)


def _text(value: Any) -> str:
    """Format a JSON value; numbers as short as possible, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float | list):
        return _cut(json.dumps(value))
    if isinstance(value, list):
        return _cut(_joined(value, ", "))
    return _cut(value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value))


def _joined(values: list[Any], by: str) -> str:
    return by.join(map(_text, values))


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGE
    return f"{value:.3f}" if known else ""


def _cut(text: str) -> str:
    flat = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return flat if len(flat) <= _LONG else f"{flat[: _LONG - 3]}..."


def _with(text: str, after: str) -> str:
    return text + after if text else ""


def _before(before: str, text: str) -> str:
    return before + text if text else ""
