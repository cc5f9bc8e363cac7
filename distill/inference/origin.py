"""Find the weights that predicted the affinities of a store."""

from __future__ import annotations

from pathlib import Path

from distill.inference.blockwise.begin import is_blocks
from distill.inference.blockwise.tables import FOLDER
from distill.inference.settings import read_settings
from distill.inference.streaming.output.manifest import is_stream, read_job


def model_of_store(store: Path) -> tuple[str | None, str | None]:
    """Return path and checksum of the weights that predicted the affinities of a store, where it states them."""
    if is_stream(store):
        job = read_job(store)
    elif is_blocks(store):
        job = read_settings(store, FOLDER, "segment")
    else:
        return None, None
    digest = job.get("model_sha256")
    return job.get("model"), digest if isinstance(digest, str) else None
