"""One decode step on JAX arrays in the CPU's memory: no copy in, JAX arrays out.

Selecting and attending work with JAX's defaults. `quantize` and `quantize_query` return uint64,
and JAX needs jax_enable_x64 for that. Without it they raise a TypeError that says so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adamas_core import attend, encode, hadamard, quantize, select_topk

H, H_KV, S, D = 8, 2, 4096, 64  # query heads, KV heads, cached tokens, head_dim
PLANTED = 1234  # the token that the queries ask for

cpu = jax.devices("cpu")[0]
with jax.default_device(cpu):
    first, second = jax.random.split(jax.random.key(0))
    k = jax.random.normal(first, (H_KV, S, D))
    v = jax.random.normal(second, (H_KV, S, D))
    q = jnp.repeat(3 * k[:, PLANTED : PLANTED + 1], H // H_KV, axis=0)  # (H, 1, D)

indices = select_topk(q, encode(k), budget=64)
out = attend(q, k, v, indices)
assert isinstance(indices, jax.Array)
assert isinstance(out, jax.Array)
assert (indices == PLANTED).any(-1).all()

# JAX's own attention takes (B, tokens, heads, D).
one = [x.swapaxes(0, 1)[None] for x in (q, k, v)]
dense = jax.nn.dot_product_attention(*one)[0].swapaxes(0, 1)
print(f"64 of {S} tokens: largest difference from JAX {abs(out - dense).max():.1e}")
assert jnp.allclose(out, dense, atol=1e-3)

try:
    quantize(hadamard(k), [-1, 0, 1])
except TypeError as error:
    print(f"without 64-bit integers: {error}")
else:
    raise AssertionError("JAX returned uint64 without jax_enable_x64")
jax.config.update("jax_enable_x64", True)
rows = quantize(hadamard(k), [-1, 0, 1])
assert isinstance(rows, jax.Array)
assert rows.dtype == jnp.uint64
print(f"with jax_enable_x64: rows of codes {rows.shape} {rows.dtype}")
