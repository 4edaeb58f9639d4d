"""The record of a decode step, which the kernels of selection and sparse attention read."""

from __future__ import annotations

from ._array import K_FIELDS, Q_FIELDS, V_FIELDS
from ._record import Record

# Addresses and strides are in bytes.
Step = Record(
    # Addresses of opaque functions.
    *("score_tile", "collect", "choose", "rank_by_products", "attend_rows", "add_tail"),
    # Queries. Dt is their head_dim, padded.
    *(*Q_FIELDS, "Dt"),
    # Planes of H_kv heads, with room for `slots` tokens of P words. The low plane lies to_low bytes
    # after the high one. If lengths is 0, all sequences have `length` tokens.
    *("planes", "to_low", "planes_b", "planes_h", "H_kv", "slots", "P", "length", "lengths"),
    "thresholds",
    # Arrays of centered codes. If scales is 0, codes are not centered.
    *("means", "means_b", "means_h", "scales", "scales_b", "scales_h"),
    # The selection. weights is the number of weight planes, 0 for the Manhattan metric. If refined
    # is not 0, that many tokens are taken by their codes and ranked again by their products. group
    # is 1 if the query heads of a KV head choose together.
    *("weights", "budget", "refined", "sinks", "recent", "group", "indices"),
    # Keys and values. If out is 0, there is no attention.
    *(*K_FIELDS, *V_FIELDS, "out", "out_dtype", "lse", "scale"),
    # The tail, if it is not 0: how many tokens count by their codes. Third bits of the keys, and
    # their scales. Codes of the values, those of a token in 2 P words, their scales and bases. Sums
    # of the values (B, H_kv, D) in float32. The result, in the queries' dtype.
    *("tail", "third", "third_b", "third_h", "finer", "finer_b", "finer_h"),
    *("v_codes", "v_codes_b", "v_codes_h", "v_scales", "v_scales_b", "v_scales_h"),
    *("bases", "bases_b", "bases_h", "total", "whole_out"),
    # Of each row and part, two float64: a shift and a sum of weights. Of each row: the same of the
    # rest; the coded tokens, with room for all candidates, their ranks by three bits, and their
    # number.
    *("sums", "rest", "coded", "coded_room", "coded_ranks", "coded_counts"),
    # Filled by the kernel: parts per sequence; candidates that a row has room for in one part, and
    # in all parts together; addresses of the candidates, of their ranks and of their numbers.
    *("splits", "part_room", "row_room", "candidates", "ranks", "counts"),
    floats=("scale",),
)
step_at = Step.reader()
