"""Caches of one's own: arrays allocated once, positions, and a sequence in two shards."""

from __future__ import annotations

import numpy as np

from adamas_core import (
    KeyCodes,
    as_pairs,
    attend,
    encode,
    encode_into,
    merge,
    merge_topk,
    select_topk,
)

H, H_KV, CAPACITY, D, BUDGET = 8, 2, 8192, 64, 64
S, L = 5000, 4  # tokens of a prompt, and of a draft

rng = np.random.default_rng(0)
k = np.zeros((1, H_KV, CAPACITY, D), np.float32)  # a static cache: its size never changes
v = np.zeros_like(k)
prompt_k, prompt_v = rng.standard_normal((2, 1, H_KV, S, D), dtype=np.float32)
k[:, :, :S], v[:, :, :S] = prompt_k, prompt_v
codes = KeyCodes.empty(1, H_KV, D, capacity=CAPACITY).arrays()
codes = encode_into(prompt_k, codes, start=0)

# A draft of four tokens. A stack with static shapes knows the positions alone: the record may say
# that all slots hold tokens.
draft_k, draft_v = rng.standard_normal((2, 1, H_KV, L, D), dtype=np.float32)
k[:, :, S : S + L], v[:, :, S : S + L] = draft_k, draft_v
codes = encode_into(draft_k, codes)
q = 4 * np.repeat(draft_k, H // H_KV, axis=1)  # each query asks for its own token
static = codes._replace(length=CAPACITY)
indices = select_topk(q, static, BUDGET, positions=np.arange(S, S + L))
assert (indices == select_topk(q, codes, BUDGET)).all()
assert (indices[..., -1] == np.arange(S, S + L)).all()
out = attend(q, k, v, indices)
print(f"draft: {out.shape[2]} queries over {codes.length} of {CAPACITY} slots")

# Two tokens are accepted. The next ones are written over the others.
codes = encode_into(draft_k[:, :, :1], codes, start=S + 2)
k[:, :, S + 2], v[:, :, S + 2] = draft_k[:, :, 0], draft_v[:, :, 0]
expected = encode(k[:, :, : S + 3])
one = q[:, :, :1]
assert (select_topk(one, codes, BUDGET) == select_topk(one, expected, BUDGET)).all()
print(f"after a rollback: {codes.length} tokens; planes of {as_pairs(codes.planes).dtype} pairs")

# The same sequence in two shards, as on two machines. The queries are tokens of the second one.
cut, total = 2560, codes.length
found = []
for first, end in ((0, cut), (cut, total)):
    shard = encode(k[:, :, first:end])
    at = None if end == total else "all"
    idx, scores = select_topk(one, shard, BUDGET, positions=at, return_scores=True)
    found.append((np.where(idx < 0, idx, idx + np.int32(first)), scores))
indices, _ = merge_topk(*zip(*found, strict=True), budget=BUDGET)
assert (indices == select_topk(one, codes, BUDGET)).all()
parts = []
for first, end in ((0, cut), (cut, total)):
    own = np.where((indices >= first) & (indices < end), indices - np.int32(first), np.int32(-1))
    parts.append(attend(one, k[:, :, first:end], v[:, :, first:end], own, return_lse=True))
out, _ = merge(*zip(*parts, strict=True))
difference = abs(out - attend(one, k, v, indices)).max()
print(f"two shards: the same {BUDGET} tokens; largest difference {difference:.1e}")
assert difference < 1e-5

# Cross attention: 300 queries, each of which sees all tokens of another sequence.
q = rng.standard_normal((1, H, 300, D), dtype=np.float32)
out = attend(q, prompt_k[:, :, :100], prompt_v[:, :, :100], None, positions="all")
print(f"cross attention: {out.shape}")
