"""`adamas-core compare`: its metrics against plain forms, its record, its command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import model as model  # a fixture
from test_cli import out_of
from tiny_model import LETTERS_CONFIG, DenseAttention, tiny

from adamas_core import cli
from adamas_core.cli import compare, results
from adamas_core.cli.ablations import Variant, ablations, variants
from adamas_core.cli.evaluate import Captured, NextToken, Reading, batch_mean, recall
from adamas_core.cli.record import Record
from adamas_core.cli.texts import middle, named
from adamas_core.reference.selectors import SELECTORS

L, S = 20, 60


@pytest.fixture(scope="module")
def reading() -> Reading:
    tokens = np.random.default_rng(5).integers(0, 50, S + 1)
    return Reading(tiny(seed=2), [int(t) for t in tokens], L)


def log_softmax(logits: Any) -> Any:
    x = np.asarray(logits, np.float64)
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


class StepByStep:
    """A cache of its own and float64 sums: dense for many tokens, by a selector for one."""

    def __init__(self, fitted: Any, budget: int) -> None:
        self.dense, self.fitted, self.budget = DenseAttention(), fitted, budget

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        out = self.dense(layer, q, k, v)
        if q.shape[1] > 1:
            return out
        keys, values = self.dense.k[layer], self.dense.v[layer]
        indices = self.fitted[layer](q, keys, self.budget)
        for h in range(len(q)):
            g = h * len(keys) // len(q)
            chosen = indices[h, 0][indices[h, 0] >= 0]
            logits = keys[g, chosen].astype(np.float64) @ q[h, 0] / math.sqrt(q.shape[-1])
            out[h, 0] = np.exp(log_softmax(logits)) @ values[g, chosen]
        return out


@pytest.mark.parametrize("key", ["exact", "streaming-llm", "quest", "h2o", "adamas"])
def test_a_block_is_decoding_position_by_position(reading: Reading, key: str) -> None:
    model = reading.prefix.model
    fitted = reading.prefix.fit(SELECTORS[key])
    found = reading.next_token(fitted, 8)
    attention, dense = StepByStep(fitted, 8), DenseAttention()
    model.forward(reading.tokens[: S - L], 0, attention)
    full = model.forward(reading.tokens[:S], 0, dense, last=False)[-L:]
    for i in range(L):
        logits = model.forward(reading.tokens[S - L + i : S - L + i + 1], S - L + i, attention)
        p, other = log_softmax(full[i]), log_softmax(logits)
        assert found.kl[i] == pytest.approx((np.exp(p) * (p - other)).sum(), abs=2e-4, rel=2e-3)
        assert found.loss[i] == pytest.approx(-other[reading.tokens[S - L + i + 1]], abs=2e-4)
        assert found.agrees[i] == (full[i].argmax() == logits.argmax())
    assert found.kl.mean() > 0.01


@pytest.mark.parametrize("key", ["quest", "paper-quartiles", "adamas"])
def test_captured_attention_is_that_of_plain_loops(reading: Reading, key: str) -> None:
    fitted = reading.prefix.fit(SELECTORS[key])
    found = reading.captured(fitted, 8)
    for layer, q in enumerate(reading.q):
        keys, values = reading.prefix.keys_values(layer)
        indices = fitted[layer](q, keys, 8)
        for h, i in np.ndindex(q.shape[:2]):
            g, seen = h * len(keys) // len(q), S - L + i + 1
            logits = keys[g, :seen].astype(np.float64) @ q[h, i] / math.sqrt(q.shape[-1])
            p = np.exp(log_softmax(logits))
            best, chosen = set(np.argsort(-logits)[:8]), [j for j in indices[h, i] if j >= 0]
            mass, most = p[chosen].sum(), p[list(best)].sum()
            full = p @ values[g, :seen]
            error = np.linalg.norm(p[chosen] / mass @ values[g, chosen] - full)
            at = layer, h, i
            assert found.mass[at] == pytest.approx(mass, rel=1e-4)
            assert found.relative[at] == pytest.approx(mass / most, rel=1e-4)
            assert found.recall[at] == pytest.approx(len(best & set(chosen)) / 8)
            assert found.error[at] == pytest.approx(error / np.linalg.norm(full), abs=1e-4)
    assert 0 < found.recall.mean() < 1


def test_recall_leaves_out_what_is_no_token() -> None:
    chosen = np.array([[[0, 2, 4, -1], [1, 2, -1, -1]]], np.int32)
    oracle = np.array([[[0, 3, 4], [2, -1, -1]]], np.int32)  # the second sees fewer than 3
    np.testing.assert_allclose(recall(chosen, oracle, 5), [[2 / 3, 1]])


def test_the_oracle_and_full_attention(reading: Reading) -> None:
    oracle = reading.captured(reading.prefix.fit(SELECTORS["exact"]), 8)
    np.testing.assert_allclose(oracle.relative, 1)
    np.testing.assert_array_equal(oracle.recall, 1)
    assert (oracle.mass < 1).any()
    assert oracle.error.mean() > 0.01
    fitted = reading.prefix.fit(SELECTORS["full"])
    full, itself = reading.next_token(fitted, 8), reading.full()
    np.testing.assert_allclose(full.kl, 0, atol=1e-5)
    np.testing.assert_allclose(full.loss, itself.loss, atol=1e-4)
    np.testing.assert_array_equal(itself.kl, 0)
    assert full.agrees.all()
    captured = reading.captured(fitted, 8)
    np.testing.assert_allclose(captured.mass, 1, rtol=1e-5)
    np.testing.assert_allclose(captured.error, 0, atol=1e-5)
    np.testing.assert_array_equal(captured.recall, 1)


def test_dense_layers_are_dense(reading: Reading) -> None:
    fitted = reading.prefix.fit(SELECTORS["sliding-window"])
    kl = [reading.next_token(fitted, 4, dense).kl.mean() for dense in (0, 1, 2)]
    assert kl[0] > 0.01
    assert kl[1] not in (kl[0], kl[2])
    assert kl[2] == pytest.approx(0, abs=1e-6)


def test_a_run_leaves_the_dense_cache_as_it_was(reading: Reading) -> None:
    fitted = reading.prefix.fit(SELECTORS["adamas"])
    first = reading.captured(fitted, 8)
    reading.next_token(fitted, 4)
    again = reading.captured(fitted, 8)
    for a, b in zip(first[:-1], again[:-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_window_needs_a_prefix() -> None:
    for positions in (0, 5, 6):
        with pytest.raises(ValueError, match=f"5 tokens has no prefix before {positions} posit"):
            Reading(tiny(), [1, 2, 3, 4, 5, 6], positions)


def test_the_mean_over_batches_of_neighbours() -> None:
    x = np.repeat(np.arange(16.0), 3)  # as correlated as can be: three equal neighbours
    mean = batch_mean(x)
    assert mean.value == pytest.approx(7.5)
    assert mean.half == pytest.approx(2.131 * math.sqrt(np.var(np.arange(16), ddof=1) / 16))
    assert batch_mean(np.ones(40)).half == 0
    with pytest.raises(ValueError, match="15 positions; the interval of a mean takes at least 16"):
        batch_mean(np.ones(15))


def made_cell(text: str, kl: float, seed: int, budget: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n = 32
    next_token = NextToken(np.full(n, kl), rng.random(n), rng.random(n) < 0.5)
    full = NextToken(np.zeros(n), np.full(n, math.log(4.0)), np.ones(n, bool))
    captured = Captured(*(rng.random((2, 3, n), np.float32) for _ in range(4)), 0.5)
    variant = variants(["quest"])[0]
    facts = {"text": text, "context": 64, "budget": budget, "name": variant.name}
    facts |= dict.fromkeys(
        ("bytes_kept", "bytes_to_choose", "bytes_a_step", "bytes_a_step_full"), 7.0
    )
    return results.cell(full, next_token, captured, variant, facts)


def test_a_cell_and_the_row_over_texts() -> None:
    a, b = made_cell("a", 0.25, 1), made_cell("b", 0.75, 2)
    assert a["perplexity_full"] == 4
    assert a["kl"] == [0.25, 0]
    assert a["ms_to_choose"] == pytest.approx(500 / 32, rel=1e-4)
    rng = np.random.default_rng(1)
    for drawn in (32, 32, (2, 3, 32)):  # what made_cell drew before the relative mass
        rng.random(drawn, np.float32 if drawn == (2, 3, 32) else np.float64)
    worst = np.sort(rng.random((2, 3, 32), np.float32).reshape(-1))[:19]
    assert a["relative_mass_worst_tenth"] == pytest.approx(worst.mean(), rel=1e-4)
    assert a["relative_mass_tenth_percentile"] == pytest.approx(worst[-1], rel=1e-4)
    other = made_cell("a", 0.5, 1, budget=16)
    first, second = results.pooled([a, other, b])
    assert (first["budget"], second["budget"]) == (8, 16)
    assert first["texts"] == ["a", "b"]
    assert first["kl"] == [0.5, 0]
    assert first["mass"][0] == pytest.approx((a["mass"][0] + b["mass"][0]) / 2, rel=1e-4)
    halves = math.hypot(a["mass"][1], b["mass"][1]) / 2
    assert first["mass"][1] == pytest.approx(halves, rel=1e-4)
    gain = (a["loss_gain"][0] + b["loss_gain"][0]) / 2
    assert first["perplexity_ratio"][0] == pytest.approx(math.exp(gain), rel=1e-4)
    assert np.shape(first["relative_mass_by_layer_and_head"]) == (2, 3)


def test_plots_compare_on_the_same_texts() -> None:
    a, b, other = made_cell("a", 1, 1), made_cell("b", 1, 2), made_cell("b", 1, 3, budget=16)
    assert results.on_common_texts([a, b, other]) == [b, other]
    assert results.on_common_texts([a, b]) == [a, b]
    assert results.on_common_texts([a, other]) == [a, other]


def test_the_record_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cells.jsonl"
    settings = {"model": "m", "positions": 8}
    record = Record(path, settings, ("text", "budget"))
    one = {"text": "a", "budget": 1, "options": "x", "kl": 0.5}
    record.add(one)
    record.add({**one, "budget": 2})
    whole = path.read_text()
    path.write_text(whole[:-10])
    again = Record(path, settings, ("text", "budget"))
    assert list(again) == [one]
    assert again.has({"text": "a", "budget": 1, "options": "x"})
    assert not again.has({"text": "a", "budget": 2, "options": "x"})
    again.add({**one, "budget": 2})
    assert len(list(Record(path, settings, ("text", "budget")))) == 2
    with pytest.raises(ValueError, match=r"of positions = 8, now it is 9: choose another --out"):
        Record(path, {"model": "m", "positions": 9}, ("text", "budget"))
    with pytest.raises(ValueError, match=r"for a 1 of options = 'x', now it is 'y'"):
        again.has({"text": "a", "budget": 1, "options": "y"})


def test_every_ablation_is_a_selector(reading: Reading) -> None:
    found = ablations()
    assert len({variant.key for variant in found}) == len(found)
    assert len({variant.name for variant in found}) == len(found)
    assert not {variant.key for variant in found} & set(SELECTORS)
    q, k = reading.q[0], reading.prefix.keys_values(0)[0]
    for variant in found:
        fitted = variant.selector.fit(reading.prefix.q[0], k[:, : S - L])
        assert fitted(q, k, 24).shape[:2] == q.shape[:2]
    assert Variant("x", SELECTORS["paper"], 2).name.endswith("first 2 layers dense")


def test_windows_of_all_contexts_end_at_the_same_token() -> None:
    class Letters:
        def encode(self, text: str, bos: bool, special: bool) -> list[int]:
            return [ord(letter) for letter in text]

    found = middle("t", "".join(map(chr, range(100))), Letters(), [10, 20])  # type: ignore[arg-type]
    assert found[20] == list(range(29, 50))
    assert found[10] == list(range(39, 50))
    assert middle("t", "abcdefgh", Letters(), [7])[7] == [ord(x) for x in "abcdefgh"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the text t has 8 tokens, fewer than 9"):
        middle("t", "abcdefgh", Letters(), [8])  # type: ignore[arg-type]
    for name in ("pydoc", "source", "passkeys"):
        if name != "passkeys":
            windows = named(name).windows(Letters(), [300, 4000])  # type: ignore[arg-type]
            assert windows[300] == windows[4000][-301:]
        else:
            windows = named(name).windows(Letters(), [3000, 4000])  # type: ignore[arg-type]
        assert all(len(tokens) == context + 1 for context, tokens in windows.items())
    text = "".join(map(chr, windows[4000]))
    for part in text.split("What is the pass key of ")[1:]:
        name, rest = part.split("?", 1)
        key = rest.split(" is ")[1].split(".")[0]
        assert text.index(f"The pass key of {name} is {key}. ") < text.index("What is the pass")


@pytest.fixture
def command(model: list[str], tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(200)))
    return ["compare", *model[1:], "--quick", f"--text={text}", "--context=128", "--positions=32"]


def run(capsys: pytest.CaptureFixture[str], command: list[str], out: Path) -> dict[str, Any]:
    status, _, err = out_of(capsys, *command, f"--out={out}")
    assert status == 0, err
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    for result in (*found["rows"], *found["cells"]):
        del result["ms_to_choose"]
    return found


def test_quick_writes_table_json_and_plots(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    more = ["--budgets", "8", "16", "--contexts", "64", "--at=8"]
    status, printed, _ = out_of(capsys, *command, *more, f"--out={out}")
    assert status == 0
    assert "Context 128, budget 8" in printed
    assert "Context 64, budget 8" in printed
    assert "exact top-k" in printed
    found = json.loads((out / "results.json").read_text())
    assert len(found["cells"]) == 3 * len(compare.QUICK["selectors"])
    assert {"command", "date", "adamas_core", "numpy", "model", "machine"} <= set(found)
    oracle = [row for row in found["rows"] if row["selector"] == "exact"]
    assert [row["relative_mass"][0] for row in oracle] == [1, 1, 1]
    for name in ("front", "budgets", "contexts", "heat", "layers", "selectors"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    status, printed, err = out_of(capsys, *command, *more, f"--out={out}")
    assert status == 0
    assert 'no plots: matplotlib is missing (pip install "adamas-core[compare]")' in err


def test_an_interrupted_run_goes_on(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*command, "--budgets", "8", "16", "--selectors", "exact", "quest", "adamas"]
    whole = run(capsys, command, tmp_path / "whole")
    real, calls = Reading.captured, []

    def cut(self: Reading, *args: Any) -> Captured:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Reading, "captured", cut)
    assert out_of(capsys, *command, f"--out={tmp_path / 'cut'}")[0] == 130
    assert not (tmp_path / "cut" / "results.json").exists()
    resumed = run(capsys, command, tmp_path / "cut")
    assert len(calls) == 4 + 3
    assert resumed["rows"] == whole["rows"]
    assert resumed["cells"] == whole["cells"]


def test_ablations_on_the_command_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--selectors", "quest", "--budgets", "8", "--at=24", "--ablations"]
    found = run(capsys, [*command, *more], tmp_path / "out")
    told = [(row["selector"], row["budget"]) for row in found["rows"]]
    assert told == [("quest", 8), *((variant.key, 24) for variant in ablations())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--selectors", "nearest"], "no selector is called 'nearest'; there are full, exact"),
        (
            ["--context=512"],
            f"512 is more than the model's {LETTERS_CONFIG['max_position_embeddings']}",
        ),
        (["--positions=128"], "a window of 128 tokens has no prefix before 128 positions"),
        (["--positions=8"], "8 positions; the interval of a mean takes at least 16"),
        (["--text=/nowhere/text.txt"], "No such file"),
        (["--budgets", "0"], "budget"),
    ],
)
def test_errors(
    command: list[str],
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, _, err = out_of(capsys, *command, *options, f"--out={tmp_path / 'out'}")
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_other_settings_in_the_same_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "--selectors", "exact", "--budgets", "8", f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    status, _, err = out_of(capsys, *command, "--positions=40")
    assert status == 2
    assert "holds results of positions = 32, now it is 40: choose another --out" in err
    (tmp_path / "text.txt").write_text("another text of letters " * 60)
    status, _, err = out_of(capsys, *command)
    assert status == 2
    assert "of window = " in err
