"""Run the notebooks of docs/tutorials and store their outputs: `python tools/tutorials.py [NOTEBOOK ...]`.

Every notebook runs in an empty folder with the `distill` of the interpreter that runs this script. Pictures are stored
at the size of the page, and neither times nor paths of the machine are kept.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NOTEBOOKS = ("first_segmentation", "your_sections", "train_and_distil", "find_errors")
_WIDEST = 1100  # pixels of a stored picture: more than the width of a page's column
_QUALITY = 82  # of JPEG: sections are noisy, and a PNG of them is five times as large
_TIMEOUT = 600  # seconds for one cell, on a busy machine


def run_notebook(path: Path, folder: Path) -> Any:
    """Execute a notebook in `folder`.

    Args:
        path: .ipynb, which is not changed.
        folder: working directory of its cells.

    Returns:
        The notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # `distill` of a `%%bash` cell is the one next to this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    client = NotebookClient(notebook, timeout=_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}})
    return client.execute()


def tidy(notebook: Any, folder: Path) -> None:
    """Shrink the pictures of a notebook in place, and remove times and the paths of the machine."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = _without_paths(output["text"], folder)
            data = output.get("data", {})
            if "image/png" in data:
                data["image/jpeg"] = _small(data.pop("image/png"))


def _joined(outputs: list[Any]) -> list[Any]:
    """Return outputs with consecutive texts of one stream as one, without the progress bars' complaint."""
    kept: list[Any] = []
    for output in outputs:
        if "TqdmWarning" in output.get("text", ""):
            continue
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def _small(encoded: str) -> str:
    """Return a picture as JPEG with at most `_WIDEST` pixels across."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if picture.width > _WIDEST:
        tall = round(picture.height * _WIDEST / picture.width)
        picture = picture.resize((_WIDEST, tall), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    picture.save(made, "jpeg", quality=_QUALITY, optimize=True)
    return base64.b64encode(made.getvalue()).decode("ascii")


def _without_paths(text: str, folder: Path) -> str:
    for path in (folder.resolve(), folder, FOLDER.parents[1]):
        text = text.replace(f"{path}/", "").replace(str(path), ".")
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py:\d+: ", "", text)
    return re.sub(r"\S+/(distill|viz)/(\S+\.py):\d+: ", "", text)


def main(names: list[str]) -> None:
    """Execute the named notebooks, by default all, and write them back."""
    import nbformat

    for name in names or NOTEBOOKS:
        path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as made:
            notebook = run_notebook(path, Path(made))
            tidy(notebook, Path(made))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
