"""Add what `adamas-core compare` measured in a folder to a record of docs/quality.md.

    python benchmarks/quality_merge.py FOLDER benchmarks/results/quality
    python benchmarks/quality_tables.py

Results of the same text, context, selector and budget are replaced. Rows are pooled again, and all
plots are drawn again, at the context and budget of most cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adamas_core.lab import comparing, plots, results  # noqa: E402
from adamas_core.lab.reports import write_json  # noqa: E402

OF_TASKS = ("task", "length", "depth", "selector", "budget")


def merged(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], key: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The old results, of which the new ones replace those of the same key, and the others."""
    found = {tuple(result[name] for name in key): result for result in (*old, *new)}
    return list(found.values())


def merge_texts(folder: Path, record: Path) -> None:
    """Merge the cells of results.json, and draw the plots."""
    old, new = (json.loads((each / "results.json").read_text()) for each in (record, folder))
    for name in ("model", "positions"):
        if old[name] != new[name]:
            raise ValueError(
                f"{folder} has {name} = {new[name]!r} and {record} has {old[name]!r}; expected "
                "equal ones"
            )
    cells = merged(old["cells"], new["cells"], comparing.KEY)
    rows = results.pooled(cells)
    rows = [{k: v for k, v in row.items() if k not in results.HEATS} for row in rows]
    write_json(record / "results.json", {**old, "rows": rows, "cells": cells})
    [((context, budget), _)] = Counter((c["context"], c["budget"]) for c in cells).most_common(1)
    plots.quality(cells, record, context, budget)


def merge_tasks(folder: Path, record: Path) -> None:
    """Merge the rows of tasks.json, and draw the plot."""
    old, new = (json.loads((each / "tasks.json").read_text()) for each in (record, folder))
    rows = merged(old["rows"], new["rows"], OF_TASKS)
    write_json(record / "tasks.json", {**old, "rows": rows})
    plots.tasks([row for row in rows if row["solved"]], record)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the --out of a run")
    parser.add_argument("record", type=Path)
    args = parser.parse_args()
    for name, merge in (("results.json", merge_texts), ("tasks.json", merge_tasks)):
        if (args.folder / name).exists():
            merge(args.folder, args.record)


if __name__ == "__main__":
    main()
