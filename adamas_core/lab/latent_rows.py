"""Latent rows as MLA keeps them, made from the keys and values of a model, and codes of them.

No model with MLA is small enough here. So a layer of another model is written as MLA, without
changing one of its logits. The keys and values of all its KV heads are one latent row per token:

- k_rope: the 64 numbers of the first KV head's key that RoPE turns fastest, as they are;
- c: all other numbers, filled with zeros to 512, and turned by a random orthogonal matrix, because
  the basis of a trained latent space has no meaning either.

The absorbed queries are the model's queries at the same places, turned in the same way. So
q.[c, k_rope] is the model's own q.k, to rounding. The values are the first 512 numbers of the rows.
A trained latent space differs: c uses all of its 512 directions, and here it uses 2 H_kv D - 64.

Letters: H query heads, H_kv KV heads, L queries, S tokens, D head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..codes import encode
from ..ops import attend
from ..select import select_topk
from .mechanisms.tokens import Array
from .selectors import Exact

D_C, D_R = 512, 64
REFINE = 4  # times the budget: candidates whose latent rows are compared exactly


class Latent(NamedTuple):
    """A layer as MLA in its absorbed form."""

    q: Array  # (H, L, D_C + D_R)
    rows: Array  # (1, S, D_C + D_R): keys, and values in the first D_C columns
    uv: Array  # (H, D_C, D): out of a head = sum of rows[:, :D_C] times this
    scale: float


def fits(H_kv: int, D: int) -> bool:
    """Whether the keys and values of a token are latent rows of D_C + D_R numbers."""
    return 2 * H_kv * D <= D_C + D_R and D >= D_R


def latent(q: Array, k: Array, v: Array) -> Latent:
    """The layer of q (H, L, D), k and v (H_kv, S, D), all after RoPE, as MLA.

    Raises
    ------
    ValueError
        A token's keys and values are more than 576 numbers, or a head has fewer than 64.
    """
    (H, L, D), H_kv = q.shape, len(k)
    if not fits(H_kv, D):
        raise ValueError(
            f"latent: k of shape {k.shape}; expected at most {(D_C + D_R) // 2} numbers per token, "
            f"and a head_dim of at least {D_R}"
        )
    half = np.arange(D_R // 2)
    fast = np.concatenate([half, D // 2 + half])  # (D_R,), the pairs that RoPE turns fastest
    rest = np.setdiff1d(np.arange(2 * H_kv * D), fast)  # (2 H_kv D - D_R,)
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((D_C, D_C)))  # (D_C, D_C)

    def placed(x: Array) -> Array:
        """[c, k_rope] (..., D_C + D_R) of numbers (..., 2 H_kv D)."""
        c = np.zeros((*x.shape[:-1], D_C))
        c[..., : len(rest)] = x[..., rest]
        return np.concatenate([c @ turn, x[..., fast]], axis=-1).astype(np.float32)

    queries = np.zeros((H, L, 2 * H_kv * D))
    uv = np.zeros((H, 2 * H_kv * D, D))
    for h in range(H):
        first = h // (H // H_kv) * D
        queries[h, :, first : first + D] = q[h]
        uv[h, H_kv * D + first : H_kv * D + first + D] = np.eye(D)
    wide = np.zeros((H, D_C, D))
    wide[:, : len(rest)] = uv[:, rest]
    together = np.concatenate([*k, *v], axis=-1)[None]  # (1, S, 2 H_kv D)
    back = (turn.T @ wide).astype(np.float32)  # (H, D_C, D)
    return Latent(placed(queries), placed(together), back, D**-0.5)


def outputs(layer: Latent, indices: NDArray[np.int32] | None) -> tuple[Array, Array]:
    """The outputs (H, L, D) and log-sum-exps (H, L) over chosen tokens, through the library.

    The keys of `attend` are the rows, and the values are their first D_C columns: a view.
    """
    out, lse = attend(
        layer.q, layer.rows, layer.rows[..., :D_C], indices, scale=layer.scale, return_lse=True
    )
    return out @ layer.uv, lse


def compared(q: Array, k: Array, v: Array, budget: int) -> dict[str, Any]:
    """Selection from codes of latent rows, beside exact selection, for the last L of S tokens.

    Returns
    -------
    dict
        The mean over heads and positions of: `mass`, the share of the softmax that the exact
        choice of `budget` tokens has; `relative` and `refined`, those of the codes alone and with
        ``refine=REFINE``, in units of it; and the output errors of the three.
    """
    layer = latent(q, k, v)
    full, whole = outputs(layer, None)
    exact = Exact()(layer.q, layer.rows, budget)
    codes = encode(layer.rows)
    chosen = {
        "exact": exact,
        "codes": select_topk(layer.q, codes, budget),
        "refined": select_topk(layer.q, codes, budget, k=layer.rows, refine=REFINE),
    }
    found: dict[str, Any] = {"tokens": k.shape[1], "budget": budget}
    lse = {}
    for name, indices in chosen.items():
        out, lse[name] = outputs(layer, indices)
        error = np.linalg.norm(out - full, axis=-1) / np.linalg.norm(full, axis=-1)
        found[f"error_{name}"] = float(error.mean())
    found["mass"] = float(np.exp(lse["exact"] - whole).mean())
    found["relative"] = float(np.exp(lse["codes"] - lse["exact"]).mean())
    found["refined"] = float(np.exp(lse["refined"] - lse["exact"]).mean())
    return found
