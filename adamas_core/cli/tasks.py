"""Generated tasks whose answers lie in the prompt: what a model forgets under sparse attention.

A prompt is a text and the questions to it, each with the one answer that counts. Equal seeds give
equal prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Count: TypeAlias = Callable[[str], int]  # of a text's tokens

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
NAMES_TOLD = (
    "Anna Boris Clara David Emma Felix Grace Henry Irene Jacob Karen Louis Maria Nathan Olivia "
    "Peter Rachel Simon Teresa Victor"
)
WORDS_TOLD = (
    "apple river stone cloud window garden silver candle bridge forest yellow pencil rabbit "
    "summer bottle castle dragon engine flower guitar hammer island jacket kitten ladder mirror "
    "needle orange pepper queen rocket salmon ticket umbrella valley walnut zebra anchor basket "
    "carpet desert eagle feather glacier harbor insect jungle kettle lemon magnet napkin ocean "
    "pillow quilt ribbon saddle temple uncle violin winter yogurt acorn button copper"
)
NAMES, WORDS = tuple(NAMES_TOLD.split()), tuple(WORDS_TOLD.split())


@dataclass(frozen=True)
class Question:
    """What is put behind a prompt's text, and the continuation that is right."""

    text: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """A text and its questions; `depth` is where the answer lies, from 0 (first) to 1 (last)."""

    task: str
    length: int  # tokens that the text was made for
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
    """Six people's numbers at even distances in filler."""
    names = rng.choice(NAMES, 6, replace=False)
    keys = [digits(5, rng) for _ in names]
    needles = [f"The pass key of {n} is {key}. " for n, key in zip(names, keys, strict=True)]
    filler = max((length - count("".join(needles))) // count(FILLER), len(needles) + 1)
    parts = np.diff(np.linspace(0, filler, len(needles) + 2).astype(int))
    text = FILLER * int(parts[0])
    for needle, part in zip(needles, parts[1:], strict=True):
        text += needle + FILLER * int(part)
    questions = tuple(
        Question(f"\nThe pass key of {n} is", f" {key}") for n, key in zip(names, keys, strict=True)
    )
    return Prompt("multi-needle", length, None, text, questions)


def key_value(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """A list of words with a number each; eight of them are asked for."""
    line = count("river stone = 4821\n")
    pairs = max(length // line, 8)
    keys = distinct_pairs(pairs, rng)
    values = [digits(4, rng) for _ in keys]
    text = "".join(f"{key} = {value}\n" for key, value in zip(keys, values, strict=True))
    asked = rng.choice(pairs, 8, replace=False)
    questions = tuple(Question(f"\n{keys[i]} =", f" {values[i]}") for i in asked)
    return Prompt("key-value recall", length, None, text, questions)


def induction(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Random words; six of them are said again, and the next six have to follow."""
    words = max(length // count(" river"), 64)
    sequence = rng.choice(WORDS, words)
    starts = rng.choice(words - 12, 8, replace=False)
    questions = tuple(
        Question(
            "\n\n" + " ".join(sequence[i : i + 6]),
            "".join(f" {w}" for w in sequence[i + 6 : i + 12]),
        )
        for i in starts
    )
    return Prompt("induction copy", length, None, " ".join(sequence), questions)


def variables(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """Python code in which numbers go from variable to variable."""
    lines: list[str] = []
    names = distinct_pairs(max(length // count("river_stone = cloud_window\n"), 12), rng)
    held: dict[str, str] = {}
    for i, pair in enumerate(names):
        name = pair.replace(" ", "_")
        if i % 2 == 0:
            held[name] = digits(3, rng)
            lines.append(f"{name} = {held[name]}\n")
        else:
            other = names[i - 1].replace(" ", "_")
            held[name] = held[other]
            lines.append(f"{name} = {other}\n")
    copies = [name for i, name in enumerate(held) if i % 2]
    asked = rng.choice(copies, min(6, len(copies)), replace=False)
    questions = tuple(Question(f"\nassert {n} ==", f" {held[n]}") for n in asked)
    return Prompt("variable tracking", length, None, "".join(lines), questions)


def word_counts(length: int, count: Count, rng: np.random.Generator) -> Prompt:
    """A list of words in which some stand several times; how often is asked."""
    words = max(length // count(" river,"), 24)
    often = rng.choice(WORDS, 4, replace=False)
    times = rng.permutation([2, 3, 4, 5])
    rest = [w for w in WORDS if w not in often]
    listed = [w for w, n in zip(often, times, strict=True) for _ in range(n)]
    listed += list(rng.choice(rest, words - len(listed)))
    text = "Words: " + ", ".join(rng.permutation(listed)) + ".\n"
    questions = tuple(
        Question(f"The number of times that {w} is in the list of words:", f" {n}")
        for w, n in zip(often, times, strict=True)
    )
    return Prompt("word counts", length, None, text, questions)


def digits(n: int, rng: np.random.Generator) -> str:
    """A number of n digits."""
    return str(rng.integers(10 ** (n - 1), 10**n))


def distinct_pairs(n: int, rng: np.random.Generator) -> list[str]:
    """n different pairs of words."""
    chosen = rng.choice(len(WORDS) ** 2, n, replace=False)
    return [f"{WORDS[i // len(WORDS)]} {WORDS[i % len(WORDS)]}" for i in chosen]
