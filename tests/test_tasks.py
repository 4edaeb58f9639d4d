"""Generated tasks: the same from the same seed, and right by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adamas_core.lab import tasks
from adamas_core.lab.tasks import Prompt


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
