"""Generated tasks: the same from the same seed, right by construction, judged as decoding would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import model as model  # a fixture
from test_cli import out_of
from tiny_model import DenseAttention, tiny

from adamas_core.cli import judge, tasks
from adamas_core.cli.prefix import Prefix
from adamas_core.cli.tasks import Prompt
from adamas_core.llama import generate
from adamas_core.reference.selectors import SELECTORS


def count(text: str) -> int:
    return -(-len(text) // 4)


def prompts(seed: int = 0) -> list[Prompt]:
    return tasks.suite([500, 300], 2, count, seed)


def of(task: str) -> list[Prompt]:
    found = [prompt for prompt in prompts() if prompt.task == task]
    assert found
    return found


def test_equal_seeds_give_equal_prompts() -> None:
    assert prompts() == prompts()
    assert not set(prompts(0)) & set(prompts(1))
    assert len(set(prompts())) == 2 * (len(tasks.OTHERS) + 2 * len(tasks.DEPTHS))
    assert len({prompt.task for prompt in prompts()}) == len(tasks.OTHERS) + 1


def test_prompts_are_about_as_long_as_they_say() -> None:
    for prompt in prompts():
        assert 0.6 * prompt.length < count(prompt.text) < 1.5 * prompt.length, prompt.task
        assert all(q.answer.strip() for q in prompt.questions)


def test_a_pass_key_lies_at_its_depth() -> None:
    for prompt in of("passkey"):
        (question,) = prompt.questions
        key = question.answer.strip()
        assert len(key) == 5
        assert prompt.text.count(key) == 2
        assert prompt.depth is not None
        room = len(prompt.text) - len("The pass key is 12345. Remember it. 12345 is the pass key. ")
        at = prompt.text.index("The pass key is") / room
        assert abs(at - prompt.depth) <= len(tasks.FILLER) / room
        assert prompt.text.replace(tasks.FILLER, "").startswith(f"The pass key is {key}. ")


def test_every_needle_is_there_once() -> None:
    for prompt in of("multi-needle"):
        assert len(prompt.questions) == 6
        places = [prompt.text.index(q.text.strip() + q.answer + ".") for q in prompt.questions]
        assert places == sorted(places)
        assert max(np.diff(places)) < 1.5 * min(np.diff(places))


def test_values_are_those_of_their_keys() -> None:
    for prompt in of("key-value recall"):
        lines = prompt.text.splitlines()
        held = {line[:-4]: line[-4:] for line in lines}
        assert len(held) == len(lines)
        for question in prompt.questions:
            assert held[question.text.strip()] == question.answer


def test_what_is_copied_follows_in_the_text() -> None:
    for prompt in of("induction copy"):
        for question in prompt.questions:
            said = question.text.partition(": ")[2] + question.answer
            assert said in prompt.text
            assert len(question.answer.split()) == 3


@pytest.mark.parametrize("task", ["variable tracking", "variable tracking, one copy"])
def test_the_code_does_what_the_answers_say(task: str) -> None:
    for prompt in of(task):
        held: dict[str, Any] = {}
        exec(prompt.text, held)
        for question in prompt.questions:
            exec(question.text + question.answer, held)
            name = question.text.split()[1]
            assert (f"\n{name} = " in "\n" + prompt.text) and len(question.answer) == 4
            copied = '"' not in prompt.text.partition(f"{name} = ")[2].splitlines()[0]
            assert copied == task.endswith("copy")


def test_counts_are_right() -> None:
    for prompt in of("word counts"):
        lines = [*prompt.text.splitlines(), *(q.text + q.answer for q in prompt.questions)]
        for line in lines:
            words, _, told = line.partition(" = ")
            n, word = told.split()
            assert words.split() == [word] * int(n)
        assert {line.rsplit(" ", 2)[1] for line in lines} == {"1", "2", "3"}


@pytest.mark.parametrize("key", ["exact", "quest", "adamas"])
def test_exact_means_what_greedy_decoding_gives(key: str) -> None:
    rng = np.random.default_rng(4)
    model = tiny(seed=1)
    text, question = rng.integers(0, 50, 40).tolist(), rng.integers(0, 50, 4).tolist()
    prefix = Prefix(model, text, 12)
    fitted = prefix.fit(SELECTORS[key])
    for budget in (None, 4):
        attention = DenseAttention() if budget is None else prefix.sparse(fitted, budget)
        if budget is None:
            model.forward(text + question[:-1], 0, attention)
        else:
            prefix.cache.truncate(40)
            model.forward(question[:-1], 40, prefix.cache.attention(None))
        decoded = list(generate(model, question[-1:], attention, max_tokens=5, position=43))
        assert judge.exact(prefix, question, decoded, fitted, budget)
        for i in range(5):
            wrong = [*decoded[:i], (decoded[i] + 1) % 50, *decoded[i + 1 :]]
            assert not judge.exact(prefix, question, wrong, fitted, budget)


def result(selector: str, right: int, depth: float, task: str = "passkey") -> dict[str, Any]:
    budget = None if selector == "full" else 64
    facts = {"task": task, "length": 500, "depth": depth, "selector": selector, "budget": budget}
    return {**facts, "name": selector, "asked": 4, "right": right}


def test_rows_over_examples_and_what_full_attention_solves() -> None:
    cells = [result("full", 4, 0.0), result("full", 3, 1.0), result("quest", 1, 0.0)]
    cells += [result("quest", 2, 0.0), result("full", 3, 0.0, "word counts")]
    rows = judge.pooled(cells)
    told = [(row["task"], row["selector"], row["depth"], row["exact"]) for row in rows]
    assert told == [
        ("passkey", "full", 0.0, 1.0),
        ("passkey", "full", 1.0, 0.75),
        ("passkey", "quest", 0.0, 3 / 8),
        ("word counts", "full", 0.0, 0.75),
    ]
    assert [row["solved"] for row in rows] == [True, True, True, False]  # 7 of 8, and 3 of 4
    shares = judge.over_depths(rows)
    assert shares["full", None] == {("passkey", 500): 7 / 8, ("word counts", 500): 0.75}


def test_the_command(
    model: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "OTHERS", {tasks.word_counts: 60, tasks.key_value: 60})
    monkeypatch.setattr(tasks, "DEPTHS", (0.0, 1.0))
    monkeypatch.setattr(judge, "SOLVED", 0.0)
    command = ["compare", *model[1:], "--tasks", "--quick", "--contexts", "100", "--budgets", "8"]
    command += ["--selectors", "exact", "adamas", f"--out={tmp_path}"]
    status, printed, err = out_of(capsys, *command)
    assert status == 0, err
    assert "passkey, 100" in printed
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert len(found["rows"]) == 4 * 3
    assert {row["selector"] for row in found["rows"]} == {"full", "exact", "adamas"}
    monkeypatch.setattr(judge, "Prefix", None)  # nothing is left to read
    assert out_of(capsys, *command)[0] == 0
    assert json.loads((tmp_path / "tasks.json").read_text())["rows"] == found["rows"]
