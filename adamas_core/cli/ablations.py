"""What is compared: selectors by name, and ours and the paper's with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..reference.selectors import SELECTORS, Adamas, Selector


@dataclass(frozen=True)
class Variant:
    """A selector under its name on the command line, and how many first layers stay dense."""

    key: str
    selector: Selector
    dense_layers: int = 0

    @property
    def name(self) -> str:
        """As tables print it."""
        if not self.dense_layers:
            return self.selector.name
        return f"{self.selector.name}, first {self.dense_layers} layers dense"


def variants(keys: list[str]) -> list[Variant]:
    """The selectors of these names."""
    unknown = [key for key in keys if key not in SELECTORS]
    if unknown:
        raise ValueError(f"no selector is called {unknown[0]!r}; there are {', '.join(SELECTORS)}")
    return [Variant(key, SELECTORS[key]) for key in keys]


def ablations() -> list[Variant]:
    """Ours with one option changed, and the same changes of the paper's L1."""
    ours = Adamas()
    mean = replace(ours, thresholds="token", scale=True, block=64, recode=True)
    l1 = Adamas("L1", metric="l1")
    changed: dict[str, Adamas] = {
        "ours-no-transform": replace(ours, name="weighted, no transform", transform=False),
        "ours-1-bit": replace(ours, name="weighted, 1 bit", bits=1),
        "ours-3-bits": replace(ours, name="weighted, 3 bits", bits=3),
        "ours-query-3": replace(ours, name="weighted, query_bits 3", query_bits=3),
        "ours-query-8": replace(ours, name="weighted, query_bits 8", query_bits=8),
        "ours-query-float": replace(ours, name="weighted, float query", query_bits=None),
        "ours-published": replace(
            ours, name="weighted, published constants", thresholds="published"
        ),
        "ours-quartiles": replace(ours, name="weighted, quartiles", thresholds="quartiles"),
        "ours-token": replace(ours, name="weighted, each token's rms", thresholds="token"),
        "ours-stretched": replace(ours, name="weighted, thresholds x 1.5", stretch=1.5),
        "ours-shrunk": replace(ours, name="weighted, thresholds / 1.5", stretch=1 / 1.5),
        "ours-forced": replace(ours, name="weighted, 4 sinks, 16 recent", sinks=4, recent=16),
        "ours-group-integers": replace(ours, name="weighted, group by integers", group="integers"),
        "ours-group-nearest": replace(ours, name="weighted, group's nearest", group="nearest"),
        "ours-scale": replace(
            ours, name="weighted, each token's scale", thresholds="token", scale=True
        ),
        "mean-before": replace(mean, name="weighted, scale, mean of the 64 before", recode=False),
        "mean-group": replace(mean, name="weighted, scale, means of 64, group", group="integers"),
        "mean-refine-2": replace(mean, name="weighted, scale, means of 64, refine 2", refine=2),
        "mean-1-bit": replace(mean, name="weighted, scale, means of 64, 1 bit", bits=1),
        "mean-1-bit-refine-4": replace(
            mean, name="weighted, scale, means of 64, 1 bit, refine 4", bits=1, refine=4
        ),
        "l1-rms": replace(l1, name="L1, rms"),
        "l1-no-transform": replace(l1, name="L1, rms, no transform", transform=False),
        "l1-3-bits": replace(l1, name="L1, rms, 3 bits", bits=3),
        "l1-forced": replace(l1, name="L1, rms, 4 sinks, 16 recent", sinks=4, recent=16),
        "l2-rms": replace(l1, name="L2, rms", metric="l2"),
    }
    dense = [
        Variant("ours-dense-2", ours, dense_layers=2),
        Variant("paper-dense-2", SELECTORS["paper"], dense_layers=2),
        Variant("paper-quartiles-dense-2", SELECTORS["paper-quartiles"], dense_layers=2),
    ]
    return [Variant(key, selector) for key, selector in changed.items()] + dense
