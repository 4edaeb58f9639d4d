"""The options of a selection, as one object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import checks

TAIL = 256  # tokens by codes, if no other number is given: see docs/quality.md


@dataclass(frozen=True)
class Selection:
    """How tokens are selected: one object that is checked when it is built.

    `select_topk` and `KVCache` take it whole, and so does every backend.

    Parameters
    ----------
    metric : {"weighted", "manhattan"}
        How queries are compared with codes. "weighted": the query keeps `query_bits` bits per
        coordinate. "manhattan": the query has 2-bit codes, as the keys do; with thresholds=PAPER
        this is the published method.
    query_bits : int
        Bits per coordinate of the query, 2 to 8. One is the sign, and the others are the weight.
        Only the weighted metric has them.
    sinks : int
        How many of the first tokens are always taken. They count towards the budget.
    recent : int
        How many of the last visible tokens are always taken. They count towards the budget.
    refine : int
        How many times the budget is compared exactly, 0 for codes alone. The refine * budget
        nearest tokens by their codes are candidates. Those of them with the largest exact inner
        products are taken. This reads refine * budget rows of the keys per query. 2 or 4 find
        nearly the same tokens as an exact search.
    group : bool
        Make one choice for all query heads of a KV head. A row of keys and values is then read once
        for all of them. The tokens with the most attention from all heads together are taken. The
        attention is estimated from the codes. At an equal budget each head loses some of its best
        tokens. At an equal number of rows read, it gains.
    tail : int, optional
        How many tokens after the `budget` best count by their codes, 0 for none. Their logits are
        estimates from three bits, and their values are read back from 2-bit codes. Three bits also
        choose the `budget` tokens, among the budget + tail best by two bits. All tokens after them
        count together: their estimated weights are added up, at the mean of the values. So no token
        is dropped. With 0 the tokens that are not selected are dropped. If not given: 256 in
        `attend_tail` and `KVCache`, but 0 in a cache whose codes or other options have no tail.
        `select_topk` has none.

    Raises
    ------
    TypeError
        A number is not an integer, or group is not a bool.
    ValueError
        A value is out of range, or no backend supports the combination: group needs
        metric="weighted" and refine=0, and tail needs metric="weighted" and group=False.

    Examples
    --------
    >>> from adamas_core import Selection
    >>> Selection(sinks=4, refine=2)
    Selection(metric='weighted', query_bits=4, sinks=4, recent=0, refine=2, group=False, tail=None)
    """

    metric: str = "weighted"
    query_bits: int = 4
    sinks: int = 0
    recent: int = 0
    refine: int = 0
    group: bool = False
    tail: int | None = None

    def __post_init__(self) -> None:
        where = "Selection"
        checks.metric(where, self.metric)
        checks.query_bits(where, "query_bits", self.query_bits)
        counts = ["sinks", "recent", "refine"] + ([] if self.tail is None else ["tail"])
        for name in counts:
            checks.at_least(where, name, getattr(self, name), 0)
        checks.true_or_false(where, "group", self.group)
        for name in ("query_bits", *counts):
            object.__setattr__(self, name, int(getattr(self, name)))  # NumPy's integers too
        object.__setattr__(self, "group", bool(self.group))
        if self.group and self.metric != "weighted":
            raise ValueError(
                f"Selection: group=True with metric={self.metric!r}; expected metric='weighted', "
                "because a group needs estimates of q.k"
            )
        if self.group and self.refine:
            raise ValueError(
                f"Selection: group=True with refine={self.refine}; expected refine=0, because "
                "refine ranks tokens for each head"
            )
        if self.tail and self.metric != "weighted":
            raise ValueError(
                f"Selection: tail={self.tail} with metric={self.metric!r}; expected "
                "metric='weighted', because the tail needs estimates of q.k"
            )
        if self.tail and self.group:
            raise ValueError(
                f"Selection: tail={self.tail} with group=True; expected group=False, because the "
                "tail ranks tokens for each head"
            )

    def settled(self, centered: bool) -> Selection:
        """The same with a number for `tail`, for centered or plain codes."""
        if self.tail is not None:
            return self
        possible = centered and self.metric == "weighted" and not self.group
        return replace(self, tail=TAIL if possible else 0)


# The default of every signature. One object serves all calls, because it cannot change.
DEFAULT = Selection()
