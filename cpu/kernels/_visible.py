"""Which tokens a query sees, and which of them are always taken."""

from __future__ import annotations

from ._jit import inlined, outlined


@inlined
def visible_tokens(length, L, l):
    """How many tokens query l of the last L sees."""
    return max(length - (L - 1 - l), 0)


@outlined
def forced_tokens(visible, budget, record):
    """The visible tokens that are taken whatever their distance: record.sinks and record.recent.

    All forced tokens rank alike. So if they exceed the budget, the newest are taken. Returns
    (sinks, how many of their newest are taken, the first recent token, how many of the newest
    recent ones are taken). The tokens between sinks and recent ones compete for the other places.
    """
    recent = min(record.recent, visible)
    sinks = min(record.sinks, visible - recent)
    recent_taken = min(recent, budget)
    sinks_taken = min(sinks, budget - recent_taken)
    return sinks, sinks_taken, visible - recent, recent_taken
