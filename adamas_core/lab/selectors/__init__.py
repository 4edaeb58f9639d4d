"""Ways to choose the tokens that a query attends to: the library's own and those of other papers.

All have the interface of `Selector`, so that they run through the same decoder and are measured in
the same way.
"""

from __future__ import annotations

from ...selection import Selection
from .adamas import Adamas
from .adaptive_budgets import AdaptiveBudgets
from .double_sparsity import DoubleSparsity
from .exact import Exact
from .full import Full
from .h2o import H2O
from .loki import Loki
from .quest import Quest
from .selector import Selector
from .sign_hash import SignHash
from .simulated_codes import SimulatedCodes
from .sliding_window import SlidingWindow
from .sparq import SparQ
from .streaming_llm import StreamingLLM

__all__ = [
    "SELECTORS",
    "Adamas",
    "AdaptiveBudgets",
    "DoubleSparsity",
    "Exact",
    "Full",
    "H2O",
    "Loki",
    "Quest",
    "Selector",
    "SignHash",
    "SimulatedCodes",
    "SlidingWindow",
    "SparQ",
    "StreamingLLM",
]

MANHATTAN = Selection(metric="manhattan")

# By name on the command line, in the order of tables.
SELECTORS: dict[str, Selector] = {
    "full": Full(),
    "exact": Exact(),
    "sliding-window": SlidingWindow(),
    "streaming-llm": StreamingLLM(),
    "h2o": H2O(),
    "quest": Quest(),
    "sparq": SparQ(),
    "double-sparsity": DoubleSparsity(),
    "double-sparsity-quarter": DoubleSparsity("Double Sparsity, D/4 channels", share=4),
    "loki": Loki(),
    "sign-hash": SignHash(),
    "paper": Adamas("Adamas as published", MANHATTAN, "published"),
    "paper-xor": SimulatedCodes(
        "Adamas as published, XOR kernel", metric="xor", thresholds="published"
    ),
    "paper-quartiles": Adamas("Adamas, L1, quartiles", MANHATTAN, "quartiles"),
    "paper-own-quartiles": SimulatedCodes(
        "Adamas, L1, own quartiles", metric="l1", thresholds="quartiles", own_thresholds=True
    ),
    "adamas": Adamas(),
    "adamas-refine-2": Adamas("weighted, centered codes, refine 2", Selection(refine=2)),
    "adamas-group": Adamas("weighted, centered codes, group", Selection(group=True)),
    "adamas-plain": Adamas("weighted, plain codes", thresholds="rms"),
    "adamas-plain-refine-2": Adamas("weighted, plain codes, refine 2", Selection(refine=2), "rms"),
    "adamas-plain-refine-4": Adamas("weighted, plain codes, refine 4", Selection(refine=4), "rms"),
    "adamas-plain-group": Adamas("weighted, plain codes, group", Selection(group=True), "rms"),
    "adamas-plain-high-refine-4": SimulatedCodes(
        "weighted, plain codes, high plane, refine 4", bits=1, refine=4
    ),
    "adamas-plain-adaptive": AdaptiveBudgets(),
}
