"""What a registered attention does in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..dispatch import Array, on_host_thresholds
from ..selection import Selection


@dataclass(frozen=True)
class Plan:
    """The arguments of `register`, checked, with a number for the tail."""

    budget: int
    selection: Selection
    thresholds: np.ndarray[Any, Any] | None
    tokens: int  # the most new tokens of a sparse call

    @classmethod
    def of(
        cls,
        budget: int,
        selection: Selection,
        thresholds: Array | Sequence[float] | None,
        draft: int,
    ) -> Plan:
        where = "register"
        checks.instance(where, "selection", selection, Selection, "a Selection")
        checks.at_least(where, "budget", budget, 1)
        checks.forced(where, budget, selection)
        checks.at_least(where, "draft", draft, 0)
        t = None
        if thresholds is not None:
            t = on_host_thresholds(where, thresholds)
            checks.thresholds(where, t, len(t) if t.ndim == 2 else None)
        elif selection.metric != "weighted":
            raise ValueError(
                f"{where}: metric={selection.metric!r} without thresholds; expected thresholds, "
                "because no prompt is set aside to calibrate them from"
            )
        if t is not None:
            checks.tail_of_plain(where, selection)
        return cls(int(budget), selection.settled(t is None), t, int(draft) + 1)

    @property
    def bits(self) -> int:
        """Bits per coordinate of the keys: a tail reads a third one."""
        return 3 if self.selection.tail else 2
