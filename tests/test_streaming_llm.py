"""The first 4 tokens and the last ones."""

from __future__ import annotations

from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, expect

from adamas_core.lab.selectors import StreamingLLM


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_streaming_llm(case: Case, budget: int) -> None:
    def sinks_and_last(h: int, l: int, K: int) -> list[int]:
        visible = list(range(case.own(l) + 1))
        sinks = visible[: min(4, K - 1)]
        rest = [j for j in visible if j not in sinks]
        return sinks + rest[max(len(rest) - (K - len(sinks)), 0) :]

    expect(case, StreamingLLM()(case.q, case.k, budget), budget, sinks_and_last)
