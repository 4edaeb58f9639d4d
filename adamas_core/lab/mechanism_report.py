"""The rows of ``adamas-core mechanisms``: counts and needles, and figures on a real model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import latent_rows, mechanism_model
from .drop_ins import BUDGET
from .mechanism_catalog import ROWS
from .mechanism_costs import PREFILLS, SIZES, STEPS, costs, exponents
from .needles import SIZES as NEEDLE_SIZES
from .needles import found
from .prefix import Prefix

Progress = Callable[[str, int, int | None], object]  # what is going on, done, total
QUERIES = 128  # at the end of the text, for codes of latent rows


def counted_rows(progress: Progress) -> list[dict[str, Any]]:
    """A row per mechanism, without a model: what it costs, and the needles that it finds.

    A cost that is not counted is None.
    """
    rows = []
    for done, (name, row) in enumerate(ROWS.items()):
        progress(row.name, done, len(ROWS))
        measured = costs(name)
        slopes = exponents(measured, row.theory)
        rows.append(
            {
                "mechanism": name,
                "name": row.name,
                "paper": row.paper,
                "order": row.theory.order,
                **{field: known(value) for field, value in measured._asdict().items()},
                "exponents": {field: known(list(pair)) for field, pair in slopes.items()},
                "found": found(name),
                "models": row.models,
            }
        )
    return rows


def known(values: list[float]) -> list[float] | None:
    """The values, or None where nothing was counted."""
    return None if any(map(math.isnan, values)) else values


def setting() -> dict[str, Any]:
    """The sizes that rows were counted at."""
    return {
        "steps": list(STEPS),
        "prefills": list(PREFILLS),
        "sizes": SIZES._asdict(),
        "needles": NEEDLE_SIZES._asdict(),
    }


def model_report(prefix: Prefix, progress: Progress) -> dict[str, Any]:
    """Figures on the queries, keys and values of a model that has read a text.

    Returns
    -------
    dict
        `errors`, by mechanism, over three layers; `indexer` and `lolcats`, rows of the middle
        layer; and `latent`, a row per layer, for the last queries. `latent` is empty where the
        model's keys and values do not fit into 576 numbers.
    """
    count = len(prefix.layers)
    places = sorted({count // 4, count // 2, 3 * count // 4})
    layers = [(prefix.q[place], *prefix.keys_values(place)) for place in places]
    errors = mechanism_model.output_errors(
        layers, lambda name: progress(f"Output error of {name}", 0, None)
    )
    middle = layers[len(layers) // 2]
    progress("Fitting the DSA indexer", 0, None)
    indexer = mechanism_model.indexer_rows(middle)
    progress("Fitting LoLCATs", 0, None)
    lolcats = mechanism_model.lolcats_rows(middle)
    latent = []
    H_kv, _, D = middle[1].shape
    if latent_rows.fits(H_kv, D):
        for place, (q, k, v) in zip(places, layers, strict=True):
            progress("Codes of latent rows", 0, None)
            row = latent_rows.compared(q[:, -QUERIES:], k, v, BUDGET)
            latent.append({"layer": prefix.layers[place], **row})
    return {"errors": errors, "indexer": indexer, "lolcats": lolcats, "latent": latent}
