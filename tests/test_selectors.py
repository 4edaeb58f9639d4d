"""The table of selectors."""

from __future__ import annotations

from adamas_core.lab.selectors import SELECTORS, Form, bytes_of_rows

# Bytes at D = 128: kept per token, and read per step over 1000 tokens with a budget of 100.
BYTES: dict[str, tuple[float, float]] = {
    "full": (0, 0),
    "exact": (0, 256_000),
    "sliding-window": (0, 0),
    "streaming-llm": (0, 0),
    "h2o": (2, 200),
    "quest": (32, 32_000),
    "sparq": (256, 64_000),
    "sparq-mean": (256, 64_000),
    "vattention": (0, 256_000),
    "tail-64": (87, 37_000),
    "tail-256": (87, 37_000),
    "tail-1024": (87, 37_000),
    "tail-4096": (87, 37_000),
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


def test_bytes_of_rows() -> None:
    """A row of K and V is 512 bytes. The tail also reads 33 bytes per coded
    token, and 17 per token that is coded or exact."""
    for name, selector in SELECTORS.items():
        coded = min(int(name[5:]), 900) if name.startswith("tail-") else 0
        assert (
            bytes_of_rows(selector, 128, 1000, 100)
            == 100 * 512 + coded * 33 + (coded and 100 + coded) * 17
        ), name
        assert bytes_of_rows(selector, 128, 1000, 2000) == 1000 * 512, name


def test_forms() -> None:
    forms = {name for name, selector in SELECTORS.items() if isinstance(selector, Form)}
    assert forms == {"sparq-mean", "vattention", *(f"tail-{M}" for M in (64, 256, 1024, 4096))}


def test_names_differ() -> None:
    names = [selector.name for selector in SELECTORS.values()]
    assert len(set(names)) == len(names)
