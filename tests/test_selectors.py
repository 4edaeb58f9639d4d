"""The table of selectors."""

from __future__ import annotations

from adamas_core.lab.selectors import SELECTORS

# Bytes at D = 128: kept per token, and read per step over 1000 tokens with a budget of 100.
BYTES: dict[str, tuple[float, float]] = {
    "full": (0, 0),
    "exact": (0, 256_000),
    "sliding-window": (0, 0),
    "streaming-llm": (0, 0),
    "h2o": (2, 200),
    "quest": (32, 32_000),
    "sparq": (256, 64_000),
    "double-sparsity": (8, 8_000),
    "double-sparsity-quarter": (20, 20_000),
    "loki": (0, 64_000),
    "sign-hash": (16, 16_000),
    "paper": (32, 32_000),
    "paper-xor": (32, 32_000),
    "paper-quartiles": (32, 32_000),
    "paper-own-quartiles": (32, 32_000),
    "adamas": (32 + 1 + 4, 37_000),
    "adamas-refine-2": (37, 37_000 + 100 * 256),
    "adamas-group": (37, 37_000),
    "adamas-plain": (32, 32_000),
    "adamas-plain-refine-2": (32, 32_000 + 100 * 256),
    "adamas-plain-refine-4": (32, 32_000 + 300 * 256),
    "adamas-plain-high-refine-4": (16, 16_000 + 300 * 256),
    "adamas-plain-group": (32, 32_000),
    "adamas-plain-adaptive": (32, 32_000),
}


def test_bytes() -> None:
    assert set(BYTES) == set(SELECTORS)
    for name, selector in SELECTORS.items():
        kept, read = selector.bytes_kept(128), selector.bytes_read(128, 1000, 100)
        assert (kept, read) == BYTES[name], name
        assert isinstance(selector.name, str)


def test_names_differ() -> None:
    names = [selector.name for selector in SELECTORS.values()]
    assert len(set(names)) == len(names)
