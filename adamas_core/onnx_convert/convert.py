"""A whole model: find its attention, replace it, and write it to a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from .. import checks
from ..extra import needs_extra
from ..selection import DEFAULT, Selection
from . import codes_io, group_query, plain_attention
from .graph import Graph, label

# Attention that other exporters write; a model with one of these would stay dense unnoticed.
OTHERS = (
    "Attention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention",
    "MultiHeadAttention", "PackedMultiHeadAttention", "PagedAttention", "QAttention",
    "SparseAttention",
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """What became of the attention nodes of a model.

    Attributes
    ----------
    replaced : int
        How many use the sparse operator now.
    causal : int
        How many of these had a mask, which is taken to be causal and without padding.
    windows, dense : tuple of str
        Those that stay as they are: for their window, and as the first `dense_layers`.
    """

    replaced: int
    causal: int
    windows: tuple[str, ...]
    dense: tuple[str, ...]


def convert(
    model: Any, budget: int = 128, selection: Selection = DEFAULT, dense_layers: int = 0
) -> Converted:
    """Replace the attention of a model by the sparse operator, in place.

    After an error the model is of no use: some of it may have changed.

    Each layer gets an input and an output more: its codes, uint8 (B, H_kv, bytes), with the names
    of its keys and "codes" in the place of "key".

    Parameters
    ----------
    model : onnx.ModelProto
    budget : int
        Tokens per query head that count by their keys and values.
    selection : Selection
        With metric="weighted". A tail that is not given is 256.
    dense_layers : int
        How many of the first attention nodes stay as they are.

    Returns
    -------
    Converted
        Layers with a window stay as they are, too: they read only their window.

    Raises
    ------
    TypeError
        A number is not an integer, or selection is not a Selection.
    ValueError
        An option is out of range. Or the model has no attention that is known, or one that is not
        as expected: the text names the node.
    ImportError
        The extra "onnxruntime" is not installed.
    """
    where = "convert"
    checks.at_least(where, "budget", budget, 1)
    checks.at_least(where, "dense_layers", dense_layers, 0)
    checks.instance(where, "selection", selection, Selection, "a Selection")
    checks.forced(where, budget, selection)
    if selection.metric != "weighted":
        raise ValueError(
            f"{where}: metric={selection.metric!r}; expected 'weighted': the operator has centered "
            "codes alone"
        )
    graph = Graph(model)
    others = [node for node in graph.nodes if node.op_type in OTHERS]
    if others:
        raise ValueError(
            f"{label(others[0])} is an attention that cannot be replaced; expected "
            "GroupQueryAttention, or MatMul, Softmax and MatMul"
        )
    settled = selection.settled(centered=True)
    options = {f.name: int(getattr(settled, f.name)) for f in fields(settled) if f.name != "metric"}
    found = _found(graph)
    if not found:
        if any(node.domain == codes_io.DOMAIN for node in graph.nodes):
            raise ValueError("the model is converted already; expected one with dense attention")
        raise ValueError("no attention that is known; expected a decoder with a cache")
    if dense_layers > len(found):
        raise ValueError(
            f"{where}: dense_layers={dense_layers}; expected 0 to {len(found)}, the attention "
            "nodes of the model"
        )
    first, rest = found[:dense_layers], found[dense_layers:]
    replaced = [one for one in rest if not one.window]
    for one in replaced:
        one.replace({**options, "budget": int(budget)})
    if replaced:
        codes_io.add_domain(model, graph.onnx.helper)
    graph.finish()
    return Converted(
        len(replaced),
        sum(one.mask for one in replaced),
        tuple(one.name for one in found if one.window),
        tuple(one.name for one in first if not one.window),
    )


@dataclass(frozen=True)
class _Attention:
    """One attention of a graph: its place there, and how it is replaced."""

    place: int
    name: str
    replace: Callable[[dict[str, int]], None]
    window: bool = False
    mask: bool = False


def _found(graph: Graph) -> list[_Attention]:
    """Every attention in the order of the graph."""
    places = {id(node): i for i, node in enumerate(graph.nodes)}
    found = []
    for node in group_query.find(graph):
        work = partial(group_query.replace, graph, node)
        window = group_query.has_window(node)
        found.append(_Attention(places[id(node)], label(node), work, window))
    for node in plain_attention.find(graph):
        work = partial(plain_attention.replace, graph, plain_attention.match(graph, node))
        found.append(_Attention(places[id(node)], label(node), work, mask=True))
    return sorted(found, key=lambda one: one.place)


def convert_file(
    source: Path,
    target: Path,
    budget: int = 128,
    selection: Selection = DEFAULT,
    dense_layers: int = 0,
) -> Converted:
    """Convert the model of a file. Weights in other files stay there, or go to the target's folder.

    Raises
    ------
    ValueError
        As `convert`. Or the source is no ONNX model, the target is the source, or a file of weights
        would replace another.
    OSError
        A file cannot be read or written.
    """
    onnx = needs_extra("onnx", "onnxruntime")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the model to convert; expected another file for the result")
    try:
        model = onnx.load(str(source), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf has several of its own
        raise ValueError(f"{source} is no ONNX model: {error}") from error
    try:
        done = convert(model, budget, selection, dense_layers)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for name in sorted(_files(onnx, model)):
        _copy(source.parent / name, target.parent / name)
    target.write_bytes(model.SerializeToString())
    return done


def _files(onnx: Any, model: Any) -> set[str]:
    """The files of weights that a model names."""
    tensors = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    return {x.value for t in tensors for x in t.external_data if x.key == "location"}


def _copy(source: Path, target: Path) -> None:
    """Copy a file of weights to another folder."""
    if target.exists():
        if not target.samefile(source):
            raise ValueError(f"{target} is there already; expected a folder without this file")
        return
    shutil.copyfile(source, target)
