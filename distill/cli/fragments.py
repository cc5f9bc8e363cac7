"""Train the transformer of the method `fragments` (`distill fragments`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import app
from distill.cli.console import Bar, Recorded, say
from distill.cli.options import Overwrite, free_out
from distill.cli.selecting import selects


@app.command()
@selects("affinity", "labels")
def fragments(
    affinity: Annotated[str, typer.Argument(metavar="AFFINITY", help="such as OUT.zarr:affinity; --box to train on")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="ground truth of both parts")],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="file to write")],
    validation: Annotated[
        str,
        typer.Option(metavar="Z,Y,X:Z,Y,X", help="voxels of AFFINITY that choose step and threshold; none of --box"),
    ],
    steps: Annotated[int, typer.Option(help="steps of the optimiser")] = 500,
    batch: Annotated[int, typer.Option(help="contacts in a step")] = 512,
    neighbours: Annotated[int, typer.Option(help="strongest other neighbours on each side of a contact")] = 4,
    width: Annotated[int, typer.Option(help="width of the tokens, a multiple of 4")] = 32,
    layers: Annotated[int, typer.Option(help="layers of the transformer")] = 2,
    seed: Annotated[int, typer.Option(help="of the first weights and the order of contacts")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a small transformer that scores which watershed fragments belong together, for --method fragments."""
    free_out(out, overwrite)
    from distill.io.selection import parse_box, with_selection
    from distill.models.fragment_file import FragmentArchitecture, save_fragments
    from distill.training.fragments import FragmentTraining, train_fragments

    parse_box(validation, "--validation")
    architecture = FragmentArchitecture(neighbours, width, layers)
    training = FragmentTraining(steps=steps, batch=batch, seed=seed)
    with Recorded(out) as record, Bar("steps") as bar:
        chosen_on = with_selection(affinity, box=validation)
        found = train_fragments(affinity, labels, chosen_on, architecture, training, bar.update)
        save_fragments(out, found)
        record.update({"threshold": found.threshold, **found.notes})
    scores = found.notes["validation"]
    voi = f"VOI {scores['voi']:.3f} (split {scores['voi_split']:.3f}, merge {scores['voi_merge']:.3f})"
    say(f"{out}: step {found.notes['step']}, merges above {found.threshold:g}")
    say(f"validation part: {voi}, ARAND {scores['arand']:.3f}; step and threshold were chosen on it")
    model = found.notes["model"] or "MODEL"
    say(f"next: distill segment SOURCE --model {model} --method fragments --fragments {out} --out OUT.zarr")
