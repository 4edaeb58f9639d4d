"""PyTorch on the CPU: scaled_dot_product_attention, and matmul-softmax-matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from . import COPY_BYTES


def tensor(x: NDArray[Any]) -> torch.Tensor:
    """The same memory as a tensor. bfloat16 goes through int16, because torch does not know it."""
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int
) -> dict[str, Callable[[], torch.Tensor]]:
    torch.set_num_threads(threads)
    q, k, v = tensor(q), tensor(k), tensor(v)
    B, H, _, D = q.shape
    H_kv = k.shape[1]
    grouped = q.view(B, H_kv, H // H_kv, D)

    def matmuls(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax((q * D**-0.5) @ k.transpose(-1, -2), dim=-1) @ v

    found = {
        "matmuls, grouped": lambda: matmuls(grouped, k, v),
        "sdpa, enable_gqa": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    }
    if H_kv < H:
        # Without a mask, the G query heads of a KV head may be G queries of one head.
        found["sdpa, group as queries"] = lambda: F.scaled_dot_product_attention(grouped, k, v)
        if 2 * k.nbytes * H // H_kv <= COPY_BYTES:
            many = [x.repeat_interleave(H // H_kv, dim=1) for x in (k, v)]
            found["sdpa, copied heads"] = lambda: F.scaled_dot_product_attention(q, *many)
            found["matmuls, copied heads"] = lambda: matmuls(q, *many)
    return found
