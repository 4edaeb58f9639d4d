"""Generated tasks whose answers are in the prompt, to see what sparse attention forgets.

A prompt is a text with questions; each question has one right answer. Equal seeds give equal
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Count: TypeAlias = Callable[[str], int]  # from a text to its number of tokens

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
NAMES_LINE = (
    "Anna Boris Clara David Emma Felix Grace Henry Irene Jacob Karen Louis Maria Nathan Olivia "
    "Peter Rachel Simon Teresa Victor"
)
WORDS_LINE = (
    "apple river stone cloud window garden silver candle bridge forest yellow pencil rabbit "
    "summer bottle castle dragon engine flower guitar hammer island jacket kitten ladder mirror "
    "needle orange pepper queen rocket salmon ticket umbrella valley walnut zebra anchor basket "
    "carpet desert eagle feather glacier harbor insect jungle kettle lemon magnet napkin ocean "
    "pillow quilt ribbon saddle temple uncle violin winter yogurt acorn button copper"
)
NAMES, WORDS = tuple(NAMES_LINE.split()), tuple(WORDS_LINE.split())


@dataclass(frozen=True)
class Question:
    """The question that follows a prompt's text, and the right continuation."""

    text: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """A text and its questions; `depth` is the answer's place, from 0 (first) to 1 (last)."""

    task: str
    length: int  # the number of tokens that was asked for
    depth: float | None
    text: str
    questions: tuple[Question, ...]


def passkey(length: int, depth: float, count: Count, rng: np.random.Generator) -> Prompt:
    """One number hidden in filler."""
    key = digits(5, rng)
    needle = f"The pass key is {key}. Remember it. {key} is the pass key. "
    filler = max((length - count(needle)) // count(FILLER), 1)
    before = round(depth * filler)
    text = FILLER * before + needle + FILLER * (filler - before)
    question = Question("\nWhat is the pass key? The pass key is", f" {key}")
    return Prompt("passkey", length, depth, text, (question,))


def multi_needle(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Six people's user names at even distances in filler, and a question for each."""
    names = rng.choice(NAMES, 6, replace=False)
    keys = [digits(4, rng) for _ in names]
    needles = [f"The user name of {n} is {n}{key}. " for n, key in zip(names, keys, strict=True)]
    filler = max((length - count("".join(needles))) // count(FILLER), len(needles) + 1)
    parts = np.diff(np.linspace(0, filler, len(needles) + 2).astype(int))
    text = FILLER * int(parts[0])
    for needle, part in zip(needles, parts[1:], strict=True):
        text += needle + FILLER * int(part)
    questions = tuple(
        Question(f"\nThe user name of {n} is {n}", key) for n, key in zip(names, keys, strict=True)
    )
    return Prompt("multi-needle", length, None, text, questions)


def key_value(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """A list of word pairs with a number each, and questions for eight of them."""
    pairs = distinct_pairs(max(length // count("river-stone4821\n"), 8), rng)
    values = [digits(4, rng) for _ in pairs]
    text = "".join(f"{pair}{value}\n" for pair, value in zip(pairs, values, strict=True))
    asked = rng.choice(len(pairs), 8, replace=False)
    questions = tuple(Question(f"\n{pairs[i]}", values[i]) for i in asked)
    return Prompt("key-value recall", length, None, text, questions)


def induction(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Random numbers; the question repeats twelve of them, and the next three must follow."""
    numbers = [digits(3, rng) for _ in range(max(length // count(" 123"), 16))]
    questions = tuple(
        Question(
            "\nThe same numbers again: " + " ".join(numbers[i : i + 12]),
            "".join(f" {n}" for n in numbers[i + 12 : i + 15]),
        )
        for i in rng.integers(0, len(numbers) - 14, 6)
    )
    return Prompt("induction copy", length, None, f"Numbers: {' '.join(numbers)}.\n", questions)


def variables(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Python code; the questions ask for the values of variables."""
    return _variables("variable tracking", 0, length, count, rng)


def copied_variables(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Python code; the questions ask for variables that are copies of other variables."""
    return _variables("variable tracking, one copy", 1, length, count, rng)


def _variables(
    task: str, copies: int, length: int, count: Count, rng: np.random.Generator
) -> Prompt:
    """Each value begins with the name of its variable, because the model mixes up bare numbers."""
    made = max(length // ((1 + copies) * count('river_stone = "river_stone482"\n')), 6)
    names = [pair.replace("-", "_") for pair in distinct_pairs((1 + copies) * made, rng)]
    values = {name: f"{name}{digits(3, rng)}" for name in names[:made]}
    lines = [f'{name} = "{value}"\n' for name, value in values.items()]
    for name, other in zip(names[made:], names[:made], strict=False):
        values[name] = values[other]
        lines.append(f"{name} = {other}\n")
    questions = tuple(
        Question(f'\nassert {name} == "{values[name][:-3]}', f'{values[name][-3:]}"')
        for name in rng.choice(names[-made:], 6, replace=False)
    )
    return Prompt(task, length, None, "".join(lines), questions)


def word_counts(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Words that stand once, twice or three times, with their count; six more to count."""

    def line() -> tuple[str, str]:
        word, n = rng.choice(WORDS), int(rng.integers(1, 4))
        return f"{' '.join([word] * n)} =", f" {n} {word}"

    examples = max(length // count("river river = 2 river\n"), 4)
    text = "".join(f"{''.join(line())}\n" for _ in range(examples))
    questions = tuple(Question(*line()) for _ in range(6))
    return Prompt("word counts", length, None, text, questions)


DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The other tasks, with the most tokens at which small models solve them.
OTHERS: dict[Callable[[int, Count, np.random.Generator], Prompt], int] = {
    multi_needle: 512,
    key_value: 512,
    induction: 512,
    variables: 256,
    copied_variables: 256,
    word_counts: 256,
}


def suite(lengths: Sequence[int], examples: int, count: Count, seed: int = 0) -> list[Prompt]:
    """All prompts: pass keys at each length and depth, and the other tasks at their lengths."""
    prompts = []
    for example in range(examples):
        rng = np.random.default_rng([seed, example])
        prompts += [make(length, count, rng) for make, length in OTHERS.items()]
        prompts += [passkey(n, depth, count, rng) for n in sorted(lengths) for depth in DEPTHS]
    return prompts


def digits(n: int, rng: np.random.Generator) -> str:
    """A number of n digits."""
    return str(rng.integers(10 ** (n - 1), 10**n))


def distinct_pairs(n: int, rng: np.random.Generator) -> list[str]:
    """n different pairs of words, such as river-stone."""
    chosen = rng.choice(len(WORDS) ** 2, n, replace=False)
    return [f"{WORDS[i // len(WORDS)]}-{WORDS[i % len(WORDS)]}" for i in chosen]
