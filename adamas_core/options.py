"""Options of one call: fields of its objects that keywords change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from . import checks
from .selection import Selection
from .softmax import Softmax


def softmax_with(where: str, softmax: Softmax, options: Mapping[str, Any]) -> Softmax:
    """The softmax with the fields that `options` name."""
    checks.instance(where, "softmax", softmax, Softmax, "a Softmax, or scale=... by its name")
    if options:
        checks.option_names(where, options, _names(Softmax))
        softmax = replace(softmax, **options)
    return softmax


def both_with(
    where: str, selection: Selection, softmax: Softmax, options: Mapping[str, Any]
) -> tuple[Selection, Softmax]:
    """The selection and the softmax with the fields that `options` name."""
    checks.instance(where, "selection", selection, Selection, "a Selection")
    others: Mapping[str, Any] = {}
    if options:
        of_selection, of_softmax = _names(Selection), _names(Softmax)
        checks.option_names(where, options, [*of_selection, *of_softmax])
        own = {name: x for name, x in options.items() if name in of_selection}
        others = {name: x for name, x in options.items() if name in of_softmax}
        selection = replace(selection, **own) if own else selection
    return selection, softmax_with(where, softmax, others)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]
