"""The compared variants: selectors by name, and Adamas with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import checks
from ..selection import Selection
from .selectors import MANHATTAN, SELECTORS, Adamas, Method, Selector, SimulatedCodes


@dataclass(frozen=True)
class Variant:
    """A selector or form, its name on the command line, and how many first layers are dense."""

    key: str
    selector: Method
    dense_layers: int = 0

    @property
    def name(self) -> str:
        """The name that tables print."""
        if not self.dense_layers:
            return self.selector.name
        return f"{self.selector.name}, first {self.dense_layers} layers dense"


def variants(keys: list[str]) -> list[Variant]:
    """The selectors of these names."""
    unknown = [key for key in keys if key not in SELECTORS]
    if unknown:
        raise ValueError(
            f"no selector is called {unknown[0]!r}; expected one of {', '.join(SELECTORS)}"
        )
    return [Variant(key, SELECTORS[key]) for key in keys]


def ablations(head_dim: int = 1) -> list[Variant]:
    """Adamas with one option changed: the weighted metric, centered codes, and the paper's L1.

    Options whose distances are too large at this head_dim are left out.
    """
    changed: dict[str, Selector] = {**of_weighted(), **of_centered(), **of_l1()}
    dense = [
        Variant("ours-dense-2", SELECTORS["adamas"], dense_layers=2),
        Variant("paper-dense-2", SELECTORS["paper"], dense_layers=2),
        Variant("paper-quartiles-dense-2", SELECTORS["paper-quartiles"], dense_layers=2),
    ]
    fitting = [Variant(key, selector) for key, selector in changed.items()]
    return [variant for variant in fitting if _fits(variant.selector, head_dim)] + dense


def _fits(selector: Method, head_dim: int) -> bool:
    if not isinstance(selector, Adamas):
        return True
    try:
        centered = selector.thresholds is None
        checks.searchable("ablations", selector.selection, head_dim, centered)
    except ValueError:
        return False
    return True


def of_weighted() -> dict[str, Selector]:
    """Changes of the weighted metric with plain codes."""
    simulated = SimulatedCodes()
    return {
        "ours-no-transform": replace(simulated, name="weighted, no transform", transform=False),
        "ours-1-bit": replace(simulated, name="weighted, 1 bit", bits=1),
        "ours-3-bits": replace(simulated, name="weighted, 3 bits", bits=3),
        "ours-query-3": Adamas("weighted, query_bits 3", Selection(query_bits=3), "rms"),
        "ours-query-8": Adamas("weighted, query_bits 8", Selection(query_bits=8), "rms"),
        "ours-query-float": replace(simulated, name="weighted, float query", query_bits=None),
        "ours-published": Adamas("weighted, published constants", thresholds="published"),
        "ours-quartiles": Adamas("weighted, quartiles", thresholds="quartiles"),
        "ours-token": replace(simulated, name="weighted, each token's rms", thresholds="token"),
        "ours-stretched": Adamas("weighted, thresholds x 1.5", thresholds="rms", stretch=1.5),
        "ours-shrunk": Adamas("weighted, thresholds / 1.5", thresholds="rms", stretch=1 / 1.5),
        "ours-forced": Adamas("weighted, 4 sinks, 16 recent", Selection(sinks=4, recent=16), "rms"),
        "ours-group-softmax": replace(
            simulated, name="weighted, group by softmax", group="softmax"
        ),
        "ours-group-nearest": replace(simulated, name="weighted, group's nearest", group="nearest"),
        "ours-scale": replace(
            simulated, name="weighted, each token's scale", thresholds="token", scale=True
        ),
    }


def of_centered() -> dict[str, Selector]:
    """Changes of centered codes."""
    simulated = SimulatedCodes(thresholds="token", scale=True, block=64, recode=True)
    return {
        "centered-before": replace(
            simulated, name="weighted, centered codes, mean of the 64 before", recode=False
        ),
        "centered-1-bit": replace(simulated, name="weighted, centered codes, 1 bit", bits=1),
        "centered-1-bit-refine-4": replace(
            simulated, name="weighted, centered codes, 1 bit, refine 4", bits=1, refine=4
        ),
    }


def of_l1() -> dict[str, Selector]:
    """Changes of the paper's L1 distance, and of its thresholds."""
    simulated = SimulatedCodes(metric="l1")
    return {
        "l1-rms": Adamas("L1, rms", MANHATTAN, "rms"),
        "l1-no-transform": replace(simulated, name="L1, rms, no transform", transform=False),
        "l1-3-bits": replace(simulated, name="L1, rms, 3 bits", bits=3),
        "l1-forced": Adamas(
            "L1, rms, 4 sinks, 16 recent", replace(MANHATTAN, sinks=4, recent=16), "rms"
        ),
        "l2-rms": replace(simulated, name="L2, rms", metric="l2"),
    }
