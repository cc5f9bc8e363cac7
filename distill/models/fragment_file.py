"""Read and write the file of a trained fragment transformer: safetensors with what it needs to be used rightly.

The normalisation of features is among the tensors; the metadata hold the architecture, the features, the threshold and
what it was trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.core.errors import CheckpointError, DistillError
from distill.core.reasons import shown
from distill.core.version import VERSION
from distill.decoder.fragment_transformer import FragmentTransformer
from distill.models.checkpoint import load_module, read_weights, write_tensors
from distill.segmentation.fragment_features import CONTACT_FEATURES, FRAGMENT_FEATURES


@dataclass(frozen=True)
class FragmentArchitecture:
    """Size of the network.

    Attributes:
        neighbours: on each side of a contact.
        width: of the tokens.
        layers: of the transformer.
        heads: of its attention.
    """

    neighbours: int = 4
    width: int = 32
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            DistillError: one of them is not a whole number in its range, or the heads do not divide the width.
        """
        for name, most in (("neighbours", 64), ("width", 1024), ("layers", 16), ("heads", 64)):
            value, least = getattr(self, name), 0 if name == "neighbours" else 1
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise DistillError(f"{name}: found {shown(value)}, expected a whole number from {least} to {most}")
        if self.width % self.heads:
            raise DistillError(f"width: found {self.width}, expected a multiple of heads {self.heads}")

    def build(self) -> FragmentTransformer:
        """Build the network with random weights."""
        sizes = len(FRAGMENT_FEATURES), len(CONTACT_FEATURES)
        return FragmentTransformer(*sizes, width=self.width, layers=self.layers, heads=self.heads)


@dataclass(frozen=True)
class FragmentModel:
    """A trained fragment transformer.

    Attributes:
        network: in evaluation mode.
        architecture: of the network.
        threshold: score above which two fragments merge, chosen on validation sections.
        model_sha256: checksum of the weights whose affinities it was trained on; None if they are not known.
        notes: what it was trained on and its validation scores.
        path: of the file.
        sha256: checksum of the file.
    """

    network: FragmentTransformer
    architecture: FragmentArchitecture
    threshold: float
    model_sha256: str | None
    notes: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sha256: str | None = None


def save_fragments(path: Path, model: FragmentModel) -> None:
    """Write a fragment transformer.

    Raises:
        CheckpointError: the file cannot be written.
    """
    config = {
        **asdict(model.architecture),
        "threshold": model.threshold,
        "model_sha256": model.model_sha256,
        "fragment_features": FRAGMENT_FEATURES,
        "contact_features": CONTACT_FEATURES,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.network.state_dict().items()}
    write_tensors(path, "fragments", tensors, config, {"version": VERSION, **model.notes})


def load_fragments(path: Path) -> FragmentModel:
    """Read a fragment transformer in evaluation mode.

    Raises:
        CheckpointError: no such file, or none that `distill fragments` of this version wrote.
    """
    weights = read_weights(path)
    if weights.kind != "fragments":
        raise CheckpointError(f"{path}: holds a {weights.kind}, expected a file that distill fragments has written")
    config = weights.config
    for key, own in (("fragment_features", FRAGMENT_FEATURES), ("contact_features", CONTACT_FEATURES)):
        if config.get(key) != list(own):
            raise CheckpointError(f"{path}: found other {key} than this version computes; train it again")
    try:
        sizes: list[Any] = [config.get(key) for key in ("neighbours", "width", "layers", "heads")]
        architecture = FragmentArchitecture(*sizes)
    except DistillError as error:
        raise CheckpointError(f"{path}: {error}") from None
    network = architecture.build()
    load_module(network, weights.tensors, str(path))
    threshold, digest = config.get("threshold"), config.get("model_sha256")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise CheckpointError(f"{path}: found threshold {shown(threshold)}, expected a number from 0 to 1")
    if digest is not None and not isinstance(digest, str):
        raise CheckpointError(f"{path}: found model_sha256 {shown(digest)}, expected text or null")
    network.eval().requires_grad_(False)
    of_file = hashlib.sha256(path.read_bytes()).hexdigest()
    return FragmentModel(network, architecture, float(threshold), digest, weights.notes, path, of_file)


def check_model(fragments: FragmentModel, sha256: str | None, model: str) -> None:
    """Refuse affinities of another model than the one that a fragment transformer was trained on.

    Args:
        fragments: the transformer.
        sha256: checksum of the weights that predict the affinities; None if they are not known.
        model: their name, for the message.

    Raises:
        CheckpointError: both checksums are known, and differ.
    """
    if None not in (sha256, fragments.model_sha256) and sha256 != fragments.model_sha256:
        trained = fragments.notes.get("model", "another model")
        raise CheckpointError(
            f"{fragments.path}: was trained on affinities of {trained} (SHA-256 {fragments.model_sha256}), found those "
            f"of {model} (SHA-256 {sha256}); expected the same weights, or train it by distill fragments on these"
        )
