"""One decode step on torch tensors in the CPU's memory: no copy in, torch tensors out."""

from __future__ import annotations

import torch

from adamas_core import KVCache, attend, decode_attention, encode, select_topk

H, H_KV, S, D = 8, 2, 4096, 64  # query heads, KV heads, cached tokens, head_dim
PLANTED = 1234  # the token that the queries ask for

torch.manual_seed(0)
k = torch.randn(1, H_KV, S, D, dtype=torch.bfloat16)
v = torch.randn(1, H_KV, S, D, dtype=torch.bfloat16)
q = (3 * k[:, :, PLANTED : PLANTED + 1]).repeat_interleave(H // H_KV, dim=1)  # (1, H, 1, D)

indices = select_topk(q, encode(k), budget=64)
out = attend(q, k, v, indices)
assert isinstance(indices, torch.Tensor)
assert isinstance(out, torch.Tensor)
assert out.dtype == torch.bfloat16
assert (indices == PLANTED).any(-1).all()

dense = torch.nn.functional.scaled_dot_product_attention(
    q.float(), k.float(), v.float(), enable_gqa=True
)
print(f"64 of {S} tokens: largest difference from torch {(out - dense).abs().max():.1e}")
torch.testing.assert_close(out.float(), dense, atol=0.02, rtol=0.01)  # bfloat16 has 8 bits

# Or let a cache keep keys, values and codes. The keys and values are copied into it. It drops no
# token: all others count by codes and by a mean.
cache = KVCache()
cache.append(k, v)
step = decode_attention(q, cache, budget=64)
assert step.dtype == torch.bfloat16
torch.testing.assert_close(step.float(), dense, atol=0.02, rtol=0.01)
print(f"KVCache: {cache.nbytes} bytes, difference from torch {(step - dense).abs().max():.1e}")
