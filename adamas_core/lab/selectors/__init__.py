"""Ways to attend to few tokens: the library's own and those of other papers.

Most choose tokens and have the interface of `Selector`. Those that also count other tokens have the
interface of `Form`. All run through the same decoder and are measured in the same way.
"""

from __future__ import annotations

from ...selection import Selection
from .adamas import Adamas
from .adamas_tail import AdamasTail
from .adaptive_budgets import AdaptiveBudgets
from .double_sparsity import DoubleSparsity
from .exact import Exact
from .full import Full
from .h2o import H2O
from .loki import Loki
from .quest import Quest
from .selector import Form, Method, Selector, attended, bytes_of_rows
from .sign_hash import SignHash
from .simulated_codes import SimulatedCodes
from .sliding_window import SlidingWindow
from .sparq import SparQ
from .sparq_mean import SparQMean
from .streaming_llm import StreamingLLM
from .vattention import VAttention

__all__ = [
    "SELECTORS",
    "Adamas",
    "AdamasTail",
    "AdaptiveBudgets",
    "DoubleSparsity",
    "Exact",
    "Form",
    "Full",
    "H2O",
    "Loki",
    "Method",
    "Quest",
    "Selector",
    "SignHash",
    "SimulatedCodes",
    "SlidingWindow",
    "SparQ",
    "SparQMean",
    "StreamingLLM",
    "VAttention",
    "attended",
    "bytes_of_rows",
]

MANHATTAN = Selection(metric="manhattan")

# By name on the command line, in the order of tables.
SELECTORS: dict[str, Method] = {
    "full": Full(),
    "exact": Exact(),
    "sliding-window": SlidingWindow(),
    "streaming-llm": StreamingLLM(),
    "h2o": H2O(),
    "quest": Quest(),
    "sparq": SparQ(),
    "sparq-mean": SparQMean(),
    "vattention": VAttention(),
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
    **{f"tail-{M}": AdamasTail(M) for M in (64, 256, 1024, 4096)},
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
