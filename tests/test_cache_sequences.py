"""Random sequences of operations leave a cache that equals a fresh one."""

from __future__ import annotations

from cache_model import run
from hypothesis import given
from strategies import seeds


@given(seed=seeds)
def test_a_cache_equals_a_fresh_one_after_any_operations(seed: int) -> None:
    run(seed)
