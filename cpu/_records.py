"""The records of all kernels. Addresses and strides are in bytes."""

from __future__ import annotations

from ._array import K_FIELDS, Q_FIELDS, V_FIELDS
from ._record import Record

# A parallel loop over items, which are taken in two rounds: `items`, and then `rest`. The functions
# are opaque ones, given by their addresses, 0 where there is none. Each takes int64:
#
#     plan(loop)                    fills threads (which holds the number allowed), scratch (bytes
#                                   per thread), shared (bytes), items and rest
#     place(loop, memory)           tells the record where the shared memory is
#     work(record, item, scratch)   does an item; finish does one of the rest
Loop = Record(
    *("record", "plan", "place", "work", "finish"),
    *("threads", "scratch", "shared", "items", "rest"),
    *("next_item", "next_rest"),  # counters of the items that are taken
)

# A decode step: selection and sparse attention.
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
    # Keys and values. If out is 0, there is no attention. soft_cap is 0 without a cap. sink_logits
    # is 0 without sinks, or the address of H float32.
    *(*K_FIELDS, *V_FIELDS, "out", "out_dtype", "lse", "scale", "soft_cap", "sink_logits"),
    # The tail, if it is not 0: how many tokens count by their codes. Third bits of the keys, and
    # their scales. Codes of the values, those of a token in 2 Pv words, their scales and bases.
    # Sums of the values (B, H_kv, Dv) in float32. Dvt is Dv, padded.
    *("tail", "third", "third_b", "third_h", "finer", "finer_b", "finer_h", "Dvt", "Pv"),
    *("v_codes", "v_codes_b", "v_codes_h", "v_scales", "v_scales_b", "v_scales_h"),
    *("bases", "bases_b", "bases_h", "total"),
    floats=("scale", "soft_cap"),
    kernels=(
        # Of each row and part, two float64: a shift and a sum of weights. Of each row: the same of
        # the rest; the coded tokens, with room for all candidates, their ranks by three bits, and
        # their number.
        *("sums", "rest", "coded", "coded_room", "coded_ranks", "coded_counts"),
        # The exact tier's result in float32, which becomes `out`, and the former `out`.
        *("exact", "whole_out"),
        # Parts per sequence; candidates that a row has room for in one part, and in all parts
        # together; addresses of the candidates, of their ranks and of their numbers. Indices, if
        # none are given.
        *("splits", "part_room", "row_room", "candidates", "ranks", "counts", "chosen"),
        # Threads that share the work, and their counters. An index that is out of range, or -1.
        *("threads", "progress", "bad"),
    ),
)

# k is (B, H_kv, S, D). `span` is an address: for each sequence its first new token, and the one
# after its last. The low plane lies to_low bytes after the high one.
EncodeCentered = Record(
    *("k", "dtype", "k_b", "k_h", "k_s", "B", "H_kv", "S", "D", "Dt", "P", "thresholds", "span"),
    *("planes", "to_low", "planes_b", "planes_h"),
    *("means", "means_b", "means_h"),
    *("scales", "scales_b", "scales_h", "open_tile", "open_tile_b", "open_tile_h"),
    # Third bits; 0 without them.
    *("third", "third_b", "third_h", "third_scales", "third_scales_b", "third_scales_h"),
)

Transform = Record("x", "dtype", "x_b", "x_h", "x_l", "B", "H", "L", "D", "Dt", "y")

# x is float32 (B, H, L, D). The thresholds of a head lie head_bytes after those of the last one.
Quantize = Record(
    *("x", "x_b", "x_h", "x_l", "B", "H", "L", "D", "P", "bits"),
    *("thresholds", "head_bytes", "target"),
)

# k is (B, H_kv, S, D). `first` is an address: the slot of the first token of each sequence.
# The low plane lies to_low bytes after the high one.
Encode = Record(
    *("k", "dtype", "k_b", "k_h", "k_s", "B", "H_kv", "S", "D", "Dt", "P", "first"),
    *("thresholds", "head_bytes", "planes", "to_low", "planes_b", "planes_h"),
)

# indices are (B, H, L, M), chosen are (B, H, L, budget).
Rerank = Record(
    *(*Q_FIELDS, *K_FIELDS, "H_kv", "indices", "M", "budget", "sinks", "recent", "chosen"),
    "rank_by_products",
)

# weights is the number of weight planes, 0 for the Manhattan metric. The low plane lies to_low
# bytes after the high one.
Score = Record(
    *("query", "B", "H", "L", "H_kv", "P", "weights", "planes", "to_low", "planes_b", "planes_h"),
    *("lengths", "S", "distances", "score_tile"),
)

# distances are uint16 (B, H, L, S).
TopK = Record(
    *("distances", "stride_b", "stride_h", "stride_l", "B", "H", "L", "S"),
    *("budget", "sinks", "recent", "indices"),
)

# v is (B, H_kv, S, D). `span` is an address: for each sequence its first new token, and how many
# are new. The codes of a token are 2 P words.
EncodeValues = Record(
    *("v", "dtype", "v_b", "v_h", "v_s", "B", "H_kv", "S", "D", "Dt", "P", "thresholds", "span"),
    *("codes", "codes_b", "codes_h", "scales", "scales_b", "scales_h"),
    *("bases", "bases_b", "bases_h"),
    # If sums is not 0, bases and total are written too, total (B, H_kv, D) without gaps. sums has
    # two rows for each head: of the full tiles, and of the tile in progress. All are float32.
    *("sums", "sums_b", "sums_h", "total"),
)

# A thread takes 16 * vectors query rows of one KV head, and one of `splits` parts of the keys.
Dense = Record(
    # soft_cap is 0 without a cap. sink_logits is 0 without sinks, or the address of H float32.
    *(*Q_FIELDS, *K_FIELDS, *V_FIELDS, "H_kv", "window", "scale", "soft_cap", "sink_logits"),
    *("out", "lse", "vectors", "splits", "parts", "part_lse"),
    floats=("scale", "soft_cap"),
)
