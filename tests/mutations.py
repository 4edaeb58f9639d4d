"""Random damage to the bytes of a file: to any file, to JSON, and to formats with a JSON header."""

from __future__ import annotations

import hashlib
import json
import re
import struct

NUMBERS = [0, 1, 2, -1, -2, 7, 255, 2**16, 2**27, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**53]
NUMBERS += [2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [str(n) for n in NUMBERS] + ["1e999", "-1e999", "NaN", "1e-320", "0.5", "true", "null"]
WORDS += ["9" * 5000, '"x"', "[]", "{}", "1e300", "1000000000"]


def _values():
    yield from (None, True, False, "", "x", "\x00", "\ud800", "../x", "/etc/passwd", "<s>" * 3000)
    yield from NUMBERS
    yield from (0.5, -0.5, 1e300, float("nan"), float("inf"), 10**400, [], {}, [[]], {"a": 1})
    yield from ([0] * 1000, ["x"] * 1000, {"type": "ByteLevel"}, {"content": 5})


VALUES = list(_values())


def mutated(kind, data, rng):
    """A damaged copy; `kind` is "bytes", "json", or "headed" or "kv" for a JSON header in bytes."""
    for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 5])):
        if kind != "bytes" and rng.random() < 0.8:
            edit = {"json": json_edit, "headed": headed_edit, "kv": kv_edit}[kind]
            edit = word if kind == "json" and rng.random() < 0.3 else edit
        else:
            edit = rng.choice(
                [flip, flip, letter, letter, overwrite, number, number, cut, insert, repeat]
            )
        data = edit(data, rng)
    return sealed(data) if kind == "kv" and rng.random() < 0.9 else data


# Any bytes


def spot(data, rng):
    """A place in a file or at its end, most often in the header."""
    return rng.randrange(min(len(data), rng.choice([300, 2000, 2000, len(data)])) + 1)


def flip(data, rng):
    if not data:
        return data
    place = spot(data[:-1], rng)
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def letter(data, rng):
    """Another letter, so that texts stay texts and most lengths stay small."""
    for _ in range(30):
        place = spot(data[:-1], rng)
        if data and 0x20 < data[place] < 0x7F:
            return data[:place] + bytes([rng.randrange(0x21, 0x7F)]) + data[place + 1 :]
    return data


def overwrite(data, rng):
    place, size = spot(data, rng), rng.choice([1, 4, 8, 40])
    return data[:place] + rng.randbytes(size) + data[place + size :]


def number(data, rng):
    """An odd number over 4 or 8 bytes, most often over a small number, like a length."""
    size = rng.choice([4, 8])
    place = spot(data, rng)
    for _ in range(30):
        if 0 < int.from_bytes(data[place : place + size], "little") < 10**5:
            break
        place = spot(data, rng)
    value = rng.choice([*NUMBERS, len(data), len(data) - place - size, rng.randrange(1000)])
    packed = struct.pack("<Q", value % 2**64)[:size]
    return data[:place] + packed + data[place + size :]


def cut(data, rng):
    return data[: rng.randrange(len(data) + 1)]


def insert(data, rng):
    place = spot(data, rng)
    return data[:place] + rng.randbytes(rng.choice([1, 4, 8, 100])) + data[place:]


def repeat(data, rng):
    """A part of the file once more, at the same place or at another."""
    begin = spot(data, rng)
    part = data[begin : begin + rng.choice([8, 24, 100, 1000])]
    place = rng.choice([begin, spot(data, rng)])
    return data[:place] + part + data[place:]


def word(data, rng):
    """Another number in a text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20000]))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(WORDS).encode() + data[match.end() :]


# JSON


def json_edit(data, rng):
    """One value replaced, left out, doubled, or nested deeply; the text stays JSON."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if rng.random() < 0.02:
        depth = rng.choice([50, 127, 900, 100_000])
        return b'{"model":' * depth + data + b"}" * depth
    node = root
    while isinstance(node, (dict, list)) and node:
        # Lists and tables of tokens are long: the first items of both, most often.
        keys = list(node)[:40] if isinstance(node, dict) else range(min(len(node), 40))
        key = rng.choice(list(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.3:
            change(node, key, rng)
            break
        node = node[key]
    try:
        return json.dumps(root).encode()
    except RecursionError:
        return data


def change(node, key, rng):
    choice = rng.random()
    if choice < 0.6:
        node[key] = rng.choice(VALUES)
    elif choice < 0.75:
        del node[key]
    elif isinstance(node, dict):
        node[rng.choice([*list(node)[:40], f"{key}x", ""])] = node[key]
    else:
        node.extend([node[key]] * rng.choice([1, 1000]))


# Formats that begin with a header of JSON, its length before it


def headed_edit(data, rng, at=0):
    """Edit the header at `at`, and most often correct its length."""
    end = at + 8 + int.from_bytes(data[at : at + 8], "little")
    header = json_edit(data[at + 8 : end].rstrip(), rng)
    header += b" " * (-(at + 8 + len(header)) % 64)
    size = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return data[:at] + struct.pack("<Q", size) + header + data[end:]


def kv_edit(data, rng):
    return headed_edit(data, rng, at=12)


def sealed(data):
    """With the checksum that belongs to the bytes."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()
