"""One decode step on NumPy arrays: encode the keys once, then select and attend for each token."""

from __future__ import annotations

import numpy as np

from adamas_core import attend, encode, select_topk

H, H_KV, S, D = 8, 2, 4096, 64  # query heads, KV heads, cached tokens, head_dim
PLANTED = 1234  # the token that the queries ask for

rng = np.random.default_rng(0)
k, v = rng.standard_normal((2, H_KV, S, D), dtype=np.float32)
codes = encode(k)

# Four query heads share a KV head. Each one points at the planted key.
q = np.repeat(3 * k[:, PLANTED : PLANTED + 1], H // H_KV, axis=0)  # (H, 1, D)

indices = select_topk(q, codes, budget=64)  # (H, 1, 64), int32, ascending
out = attend(q, k, v, indices)  # (H, 1, D), float32
assert (indices == PLANTED).any(-1).all()

# Dense attention, written out. Token j of KV head i has the logit q . k[i, j] / sqrt(D).
logits = q @ np.repeat(k, H // H_KV, axis=0).swapaxes(1, 2) / D**0.5  # (H, 1, S)
weights = np.exp(logits - logits.max(-1, keepdims=True))
dense = weights / weights.sum(-1, keepdims=True) @ np.repeat(v, H // H_KV, axis=0)
print(f"64 of {S} tokens: largest difference from dense attention {abs(out - dense).max():.1e}")
np.testing.assert_allclose(out, dense, atol=1e-3)

# A budget of all tokens is dense attention.
everything = attend(q, k, v, select_topk(q, codes, budget=S))
print(f"all {S} tokens: largest difference {abs(everything - dense).max():.1e}")
np.testing.assert_allclose(everything, dense, atol=1e-5)

# The next token: append its key to the codes, and its key and value to your own cache.
new_k, new_v = rng.standard_normal((2, H_KV, 1, D), dtype=np.float32)
codes.append(new_k)
k, v = np.concatenate([k, new_k], axis=1), np.concatenate([v, new_v], axis=1)
indices = select_topk(np.repeat(3 * new_k, H // H_KV, axis=0), codes, budget=64)
assert (indices[..., -1] == S).all()  # the new token is found
print(f"after one append: {codes.tokens} tokens, {codes.nbytes} bytes of codes")
