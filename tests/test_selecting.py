"""The options of a selection as arguments of a command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

import pytest
from tiny_model import tiny

from adamas_core import Selection
from adamas_core.cli import selecting
from adamas_core.cli.parser import Parser, UsageError

OTHER = {"metric": "manhattan", "group": True}  # a value that is not the default; others take 3


def parsed(*argv: str) -> argparse.Namespace:
    parser = Parser(prog="x")
    selecting.arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("name", [field.name for field in fields(Selection)])
def test_every_option_of_a_selection_is_an_argument(name: str) -> None:
    value = OTHER.get(name, 3)
    option = "--" + name.replace("_", "-")
    args = parsed(option) if value is True else parsed(f"{option}={value}")
    assert selecting.selection(args) == replace(Selection(), **{name: value})
    assert selecting.described(Selection)[name][1]


def test_a_field_that_is_added_is_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class More(Selection):
        """A selection.

        Parameters
        ----------
        tail : int
            How many more tokens, 5% say, are estimated. They cost less.
        share : float or None
            A share.
        """

        tail: int = 0
        share: float | None = None

    monkeypatch.setattr(selecting, "Selection", More)
    parser = Parser(prog="x")
    selecting.arguments(parser)
    args = parser.parse_args(["--tail=7", "--share=0.5"])
    assert (args.tail, args.share) == (7, 0.5)
    told = " ".join(parser.format_help().split())
    assert "how many more tokens, 5% say, are estimated (0)" in told
    with pytest.raises(UsageError, match="--share: nan; expected a finite number"):
        parser.parse_args(["--share=nan"])


def test_defaults() -> None:
    args = parsed()
    assert selecting.selection(args) == Selection()
    assert selecting.budget(args) == 128
    assert set(selecting.given(args).values()) == {None}


def test_given_options() -> None:
    found = selecting.given(parsed("--sinks=0", "--no-group", "--plain", "--budget=7"))
    given = {option: value for option, value in found.items() if value is not None}
    assert given == {"--budget": 7, "--sinks": 0, "--group": False, "--plain": False}
    assert len(found) == len(fields(Selection)) + 3


def test_no_two_helps_are_equal() -> None:
    helps = [text for _, text in selecting.described(Selection).values()]
    assert len(set(helps)) == len(helps) == len(fields(Selection))


@pytest.mark.parametrize(
    ("argv", "centered"),
    [
        ([], True),
        (["--centered"], True),
        (["--plain"], False),
        (["--metric=manhattan"], False),
        (["--metric=manhattan", "--plain"], False),
    ],
)
def test_the_kind_of_codes(argv: list[str], centered: bool) -> None:
    args = parsed(*argv, "--dense-layers=1", "--sinks=2")
    cache = selecting.cache(args, selecting.selection(args), tiny().config, 10, "reference")
    assert cache.centered is centered
    assert cache.selection.sinks == 2
    assert cache.dense_layers == {0}
    assert cache.backend == "reference"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget=0"], "^x: --budget: 0; expected at least 1$"),
        (["--budget=1e3"], "^x: --budget: 1e3; expected a whole number, at least 1$"),
        (["--sinks=-1"], "^x: --sinks: -1; expected at least 0$"),
        (["--refine", "-1"], "^x: --refine: -1; expected at least 0$"),
        (["--group=yes"], "^x: --group/--no-group: ignored explicit argument 'yes'$"),
        (["--centered", "--plain"], "^x: --plain: not allowed with argument --centered$"),
        (["--budget=4", "--sinks=3", "--recent=2"], "^sinks=3 and recent=2 are 5 tokens; expected"),
        (["--query-bits=9"], "^query_bits=9; expected 2 to 8"),
        (["--metric=cosine"], "^metric='cosine'; expected"),
        (["--metric=manhattan", "--query-bits=4"], "^--query-bits has no effect with --metric=m"),
        (["--group", "--refine=2"], "^group=True with refine=2; expected"),
        (["--group", "--metric=manhattan"], "^group=True with metric='manhattan'; expected"),
        (["--metric=manhattan", "--centered"], "^metric='manhattan' with centered codes; expected"),
    ],
)
def test_errors(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selecting.selection(parsed(*argv))


def test_more_dense_layers_than_the_model_has() -> None:
    for number in (3, 2**31 - 1):
        args = parsed(f"--dense-layers={number}")
        with pytest.raises(ValueError, match=f"--dense-layers: {number}; expected 0 to 2"):
            selecting.cache(args, Selection(), tiny().config, 0, "cpu")


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selecting.backend("cpu") == "cpu"
    assert selecting.backend("other") == "other"  # the choices refuse it

    def absent(name: str) -> None:
        raise RuntimeError("no NVIDIA driver is loaded")

    monkeypatch.setattr(selecting, "load", absent)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^gpu cannot be used: no NVIDIA"):
        selecting.backend("gpu")


def test_without_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selection, "__doc__", None)  # as python -OO does
    assert parsed("--sinks=2").sinks == 2
