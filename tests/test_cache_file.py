"""The file of a cache: it is whole or refused, and a loaded cache goes on as the saved one.

`place` puts the arrays on the CPU or on the GPU, and the cache is there too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cache_model import interrupted
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import KVCache, Selection, cache_file, calibrate, decode_attention
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(got: Any, expected: Any) -> None:
    """Arrays of one library with the same bits."""
    assert type(got) is type(expected)
    assert_same_bits(on_host(got), on_host(expected))


def saved(path: Path, place: Place = np.asarray, **options: Any) -> KVCache:
    selection = Selection(sinks=1, recent=2, query_bits=3)
    cache = KVCache(3, selection, dense_layers=[1], **options)
    for layer in (0, 1):
        k = place(normal(2, 2, 150, 48, dtype=ml_dtypes.bfloat16, seed=layer))
        cache.append(k, k, layer)
    cache.save(path)
    return cache


@pytest.mark.parametrize("options", [{}, {"thresholds": [-1, 0, 1]}, {"centered": False}], ids=str)
def test_save_and_load(place: Place, tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path, place, **options)
    back = KVCache.load(path, cache.backend)
    names = ["selection", "centered", "dense_layers", "backend"]
    assert [getattr(back, n) for n in names] == [getattr(cache, n) for n in names]
    q = place(normal(2, 4, 1, 48, seed=5))
    new = place(normal(2, 2, 1, 48, dtype=ml_dtypes.bfloat16, seed=6))
    for layer in (0, 1):
        assert back[layer].k.dtype == ml_dtypes.bfloat16
        for c in (cache, back):  # a loaded cache goes on growing as the first one does
            c.append(new, new, layer)
        same(decode_attention(q, back, 16, layer), decode_attention(q, cache, 16, layer))
    assert back[2].shape is None
    same(back[0].codes.planes, cache[0].codes.planes)
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_the_same_wherever_the_cache_lay(place: Place, tmp_path: Path) -> None:
    saved(tmp_path / "here")
    saved(tmp_path / "there", place)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_first_estimate_stays_one_through_the_file(tmp_path: Path) -> None:
    k = normal(1, 200, 64) * np.linspace(1, 3, 200, dtype=np.float32)[:, None]
    cache = KVCache(centered=False)
    cache.append(k[:, :100], k[:, :100])
    cache.save(tmp_path / "a")
    back = KVCache.load(tmp_path / "a")
    back.append(k[:, 100:], k[:, 100:])
    np.testing.assert_array_equal(back[0].codes.thresholds, calibrate(k))


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_file_is_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("kv") / "chat.kv"
    saved(path)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        damaged = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"chat\.kv (is not a KVCache file|is cut|has version)"):
        KVCache.load(path)


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.kv"
    saved(path)
    whole = path.read_bytes()
    for version in (1, cache_file.VERSION - 1, cache_file.VERSION + 1):
        path.write_bytes(whole[:8] + version.to_bytes(4, "little") + whole[12:])
        with pytest.raises(ValueError, match=rf"has version {version}; expected version 6, the"):
            KVCache.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path)
    whole = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space.*chat\.kv'$"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing/a.kv", FileNotFoundError),
        ("link/a.kv", FileNotFoundError),
        ("file/a.kv", NotADirectoryError),
        ("loop", OSError),
        ("n" * 256, OSError),
        ("n" * 249 + ".kv/x", OSError),
    ],
)
def test_a_failed_save_names_the_path_that_was_given(
    name: str, error: type[OSError], tmp_path: Path
) -> None:
    """And not a temporary file beside it."""
    cache = saved(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(error) as found:
            cache.save(path)
        assert found.value.filename == str(path)
        assert found.value.filename2 is None
    assert sorted(x.name for x in tmp_path.iterdir()) == ["file", "link", "loop"]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KVCache.load(tmp_path / "none")


def test_header_and_arrays_come_back(tmp_path: Path) -> None:
    """Without a cache: any header, arrays of any shape, views too."""
    arrays = {
        "a": np.arange(24, dtype=np.uint64).reshape(2, 3, 4)[:, ::2],
        "empty": np.zeros((0, 3), np.float16),
        "b": normal(5, dtype=ml_dtypes.bfloat16),
    }
    cache_file.write(tmp_path / "x", {"name": "é", "n": 3}, arrays)
    header, back = cache_file.read(tmp_path / "x")
    assert header == {"name": "é", "n": 3}
    assert list(back) == list(arrays)
    for name, x in arrays.items():
        assert_same_bits(back[name], np.ascontiguousarray(x))
    assert (tmp_path / "x").stat().st_size % 64 == 32  # aligned arrays, then the digest


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"hello": 1}, r"header has \['hello'\]; expected \['centered', .*\]"),
        (
            {
                "layers": 1,
                "selection": {"later": 3},
                "centered": True,
                "dense_layers": [],
                "windows": [None],
                "ragged": [False],
            },
            "no option 'later'",
        ),
    ],
)
def test_a_header_of_another_kind(tmp_path: Path, header: dict[str, Any], told: str) -> None:
    cache_file.write(tmp_path / "x", header, {})
    with pytest.raises(
        ValueError, match=rf"x has contents that this release cannot take: .*{told}"
    ):
        KVCache.load(tmp_path / "x")


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "chat.kv"
    old = os.umask(0o022)
    try:
        cache = saved(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for mode in (0o600, 0o664):
        path.chmod(mode)
        cache.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path)
    try:
        os.chown(path, 1234, 4321)
    except PermissionError:
        pytest.skip("only root may give a file away")
    cache.save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_the_target_of_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    cache = saved(tmp_path / "there" / "real")
    before = (tmp_path / "there" / "real").stat().st_ino
    (tmp_path / "link").symlink_to("there/real")
    (tmp_path / "dangling").symlink_to("there/new")
    for name in ("link", "dangling"):
        cache.save(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        KVCache.load(tmp_path / name)
    assert (tmp_path / "there" / "real").stat().st_ino != before
    assert sorted(x.name for x in tmp_path.rglob("*")) == [
        "dangling",
        "link",
        "new",
        "real",
        "there",
    ]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    cache = saved(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "null", "folder"):
        with pytest.raises(OSError, match=r"expected the path of a (regular )?file"):
            cache.save(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a", "folder", "null", "pipe"]


def test_a_write_protected_file_stays(tmp_path: Path, monkeypatch: Any) -> None:
    cache = saved(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everything
    with pytest.raises(PermissionError, match="write-protected"):
        cache.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == whole


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    saved(tmp_path / ("n" * 255))
    assert [len(x.name) for x in tmp_path.iterdir()] == [255]


def test_leftovers_of_a_killed_save_are_removed_at_the_next(tmp_path: Path) -> None:
    """But not those of a save that is still going on, and not those of other files."""
    path = tmp_path / "chat.kv"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from adamas_core import cache_file\n"
        "class Killer(dict):\n"
        "    def items(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache_file.write(Path(sys.argv[1]), {}, Killer())"
    )
    for name in ("chat.kv", "chat.kv", "other.kv"):
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
        assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2  # the second save removed what the first left

    class Saving(dict[str, Any]):
        """Arrays that are being written while another process saves."""

        def items(self) -> Any:
            saved(path)
            return super().items()

    cache_file.write(path, {"header": 1}, Saving())
    names = sorted(x.name for x in tmp_path.iterdir())
    assert len(names) == 2  # the file, and the leftover of the other one
    assert names[1] == "chat.kv"
    assert cache_file.read(path)[0] == {"header": 1}  # the last one to end


@pytest.mark.parametrize("moment", [1, 50, 400, 700, 900, 1200])
def test_an_interrupted_save_leaves_nothing(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path)
    whole = path.read_bytes()
    interrupted(lambda: cache.save(path), moment)
    cache.save(path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_loading_keeps_one_copy(tmp_path: Path) -> None:
    """Each array owns its memory, so that none keeps the bytes of the others alive."""
    saved(tmp_path / "a")
    _, arrays = cache_file.read(tmp_path / "a")
    assert all(x.flags.owndata or x.base.flags.owndata for x in arrays.values())
    assert len({id(x if x.base is None else x.base) for x in arrays.values()}) == len(arrays)


TABLES: dict[str, tuple[Any, str]] = {
    "no table": (None, "no table of arrays"),
    "an entry that is no mapping": ({"a": 1}, "expected its dtype, shape and offset"),
    "a dtype": ({"a": {"dtype": "O", "shape": [8], "offset": 0}}, "expected a dtype"),
    "a float in a shape": ({"a": {"dtype": "uint8", "shape": [8.0], "offset": 0}}, "8 sizes"),
    "a negative size": ({"a": {"dtype": "uint8", "shape": [-1], "offset": 0}}, "8 sizes"),
    "many axes": ({"a": {"dtype": "uint8", "shape": [1] * 9, "offset": 0}}, "8 sizes"),
    "a huge shape": (
        {"a": {"dtype": "uint8", "shape": [2**40] * 3, "offset": 0}},
        "at most the 64",
    ),
    "an offset": ({"a": {"dtype": "uint8", "shape": [8], "offset": 64}}, "expected offset 0"),
    "arrays on top of each other": (
        {n: {"dtype": "uint8", "shape": [64], "offset": 0} for n in "ab"},
        "expected offset 64",
    ),
    "too few arrays": ({}, "has 64 bytes of arrays; expected 0"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_does_not_fit_the_file(name: str, tmp_path: Path) -> None:
    table, told = TABLES[name]
    with pytest.raises(ValueError, match=told):
        cache_file.read(forged(tmp_path / "x", json.dumps({"arrays": table}).encode()))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[1]", "a header that is not a mapping"),
        (b"{", "a header that is not JSON"),
        (b"\xff", "a header that is not JSON"),
        (b"[" * 100_000, "a header that is not JSON"),
    ],
)
def test_a_header_that_is_none(text: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        cache_file.read(forged(tmp_path / "x", text))


def test_a_header_larger_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a header of 1099511627776 bytes"):
        cache_file.read(forged(tmp_path / "x", b"{}", size=2**40))


def forged(path: Path, text: bytes, size: int | None = None) -> Path:
    """A file with a right checksum, a header of one's own, and 64 bytes of arrays."""
    length = len(text) if size is None else size
    raw = b"ADAMASKV" + cache_file.VERSION.to_bytes(4, "little") + length.to_bytes(8, "little")
    raw += text + bytes(64)
    path.write_bytes(raw + hashlib.sha256(raw).digest())
    return path
