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


def test_ablations_that_a_head_dim_cannot_have_are_left_out() -> None:
    """At head_dim 256 the distances of queries of 8 bits reach 97536, which is more than uint16."""
    left_out = {v.key for v in ablations(128)} - {v.key for v in ablations(256)}
    assert left_out == {"ours-query-8"}
    assert [v.key for v in ablations(128)] == [v.key for v in ablations()]
