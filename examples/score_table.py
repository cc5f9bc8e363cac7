"""Print scores of several segmentations as one table: `python score_table.py A.json B.json ...`.

Each file is what `distill evaluate SEGMENTATION LABELS --json` printed; its name is the row's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {"voi_split": "VOI split", "voi_merge": "merge", "voi_sum": "sum", "arand": "ARAND"}


def main() -> None:
    rows = [["", *COLUMNS.values()]]
    for name in sys.argv[1:]:
        scores = json.loads(Path(name).read_text(encoding="utf-8"))
        rows.append([Path(name).stem.replace("_", " "), *(f"{scores[key]:.3f}" for key in COLUMNS)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for first, *numbers in rows:
        print(first.ljust(widths[0]), *(text.rjust(wide) for text, wide in zip(numbers, widths[1:], strict=True)))


if __name__ == "__main__":
    main()
