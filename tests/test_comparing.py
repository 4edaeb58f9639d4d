"""Comparison of variants on texts: descriptions of cells, and a plan on a small model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny

from adamas_core.lab.comparing import KEY, compare, describe
from adamas_core.lab.records import Record
from adamas_core.lab.selectors import SELECTORS
from adamas_core.lab.texts import Text
from adamas_core.lab.variants import Variant, variants

TOKENS = np.random.default_rng(7).integers(0, 50, 61).tolist()


def test_a_description_counts_bytes_per_kv_head() -> None:
    model = tiny(heads=4, kv_heads=2)  # D = 6
    variant = Variant("adamas", SELECTORS["adamas"], dense_layers=1)
    found = describe(variant, "t", TOKENS, 8, model.config)
    kept = 16 + 1 + 2 * 8 / 64
    assert (found["text"], found["context"], found["budget"]) == ("t", 60, 8)
    assert found["name"] == "weighted, centered codes, first 1 layers dense"
    assert "thresholds=None" in found["options"]
    assert (found["bytes_kept"], found["bytes_to_choose"]) == (kept, 60 * kept)
    assert found["bytes_a_step"] == 60 * kept + 8 * 2 * 24  # 8 rows for each of 2 query heads
    assert found["bytes_a_step_full"] == 60 * 24


def test_a_plan_is_measured_once(tmp_path: Path) -> None:
    text = Text("t", lambda tokenizer, contexts: {n: TOKENS[60 - n :] for n in contexts})
    quest, exact = variants(["quest", "exact"])
    plan = [(60, 8, quest), (60, 8, exact), (40, 8, quest), (60, 4, quest)]
    calls: list[tuple[str, int, int]] = []

    def run(plan: Any) -> list[dict[str, Any]]:
        record = Record(tmp_path / "cells.jsonl", {}, KEY)
        tokenizer: Any = SimpleNamespace(adds_bos=False, bos=None)
        compare(tiny(), tokenizer, [text], plan, 16, record, lambda *call: calls.append(call))
        return list(record)

    cells = run(plan)
    measured = [(c["context"], c["budget"], c["selector"]) for c in cells]
    assert sorted(measured) == sorted((n, b, v.key) for n, b, v in plan)
    assert ("Reading 60 tokens of t", 44, 44) in calls
    assert ("2 of 3: t, context 60, budget 8, exact top-k", 1, 3) in calls
    calls.clear()
    assert run(plan) == cells
    assert not calls
    with pytest.raises(ValueError, match="a context of 65 is more than the model's 64"):
        run([(65, 8, quest)])
