"""Variants: selectors by name, and ablations."""

from __future__ import annotations

import pytest

from adamas_core.lab.measuring import Reading
from adamas_core.lab.selectors import SELECTORS
from adamas_core.lab.variants import Variant, ablations, variants


def test_every_ablation_is_a_selector(reading: Reading) -> None:
    found = ablations()
    assert len({variant.key for variant in found}) == len(found)
    assert len({variant.name for variant in found}) == len(found)
    assert not {variant.key for variant in found} & set(SELECTORS)
    q, k = reading.q[0], reading.prefix.keys_values(0)[0]
    for variant in found:
        fitted = variant.selector.fit(reading.prefix.q[0], k[:, : reading.start])
        assert fitted(q, k, 24).shape[:2] == q.shape[:2]
    assert Variant("x", SELECTORS["paper"], 2).name.endswith("first 2 layers dense")


def test_variants_by_name() -> None:
    assert [variant.name for variant in variants(["exact", "quest"])] == ["exact top-k", "Quest"]
    with pytest.raises(
        ValueError, match="no selector is called 'nearest'; expected one of full, exact"
    ):
        variants(["exact", "nearest"])
