"""The group `labels` of an OME-Zarr image (0.4 and 0.5), which viewers look into for segmentations of the image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.io.writers.store import write_json, writing
from distill.io.writers.target import Target

GROUP = "labels"
_IMAGE = {"image": "../../"}


def is_label(to: Target) -> bool:
    """Return whether a target is an image `labels/NAME` inside a Zarr store on this machine."""
    above = (to.dataset or "").split("/")[:-1]
    return to.form in ("zarr2", "zarr3") and bool(above) and above[-1] == GROUP and isinstance(to.place, Path)


def as_label(documents: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return the metadata of a pyramid that also says that it holds labels of the image two groups above."""
    found = dict(documents)
    if form == "zarr2":
        found[".zattrs"] = {**found[".zattrs"], "image-label": {"version": "0.4", "source": _IMAGE}}
        return found
    group = found["zarr.json"]
    ome = {**group["attributes"]["ome"], "image-label": {"source": _IMAGE}}
    found["zarr.json"] = {**group, "attributes": {**group["attributes"], "ome": ome}}
    return found


def list_label(to: Target) -> None:
    """Name a label image in its group, which exists by now.

    Raises:
        SourceError: the disk refuses.
    """
    assert isinstance(to.folder, Path)
    group, name = to.folder.parent, to.folder.name
    file = group / (".zattrs" if to.form == "zarr2" else "zarr.json")
    with writing(group):
        document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if to.form == "zarr2":
            write_json(file, {**document, GROUP: _with(document.get(GROUP), name)})
            return
        attributes = document.get("attributes", {})
        ome = attributes.get("ome", {})
        ome = {**ome, "version": "0.5", GROUP: _with(ome.get(GROUP), name)}
        write_json(file, {**document, "attributes": {**attributes, "ome": ome}})


def _with(names: Any, name: str) -> list[str]:
    known = [one for one in names or [] if isinstance(one, str)]
    return known if name in known else [*known, name]
