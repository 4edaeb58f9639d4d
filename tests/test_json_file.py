"""JSON files that hold an object, and those that cannot be read."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamas_core.llama import CheckpointError
from adamas_core.llama.json_file import MAX_NESTING, nesting, read_json

json_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}\\"a'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[]{}\\"a'), inner),
)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cut short"), ("[]", "a JSON object"), (None, "missing")]
)
def test_a_json_file_that_holds_no_object_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ['{"a":%s}', '{"x": "\\"[[[", "a": %s}', '{"}}}": %s}'])
def test_nesting_is_bounded_before_the_text_is_parsed(text, tmp_path):
    path = tmp_path / "config.json"
    for depth, fine in [(MAX_NESTING - 1, True), (MAX_NESTING, False), (100_000, False)]:
        path.write_text(text % ("[" * depth + "]" * depth))
        if fine:
            assert read_json(path)
        else:
            with pytest.raises(CheckpointError, match=r"config\.json: .*nested deeper"):
                read_json(path)


@given(json_values)
def test_nesting_is_the_depth_of_the_value(value):
    def depth(value):
        parts = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, parts), default=0) if isinstance(value, (dict, list)) else 0

    assert nesting(json.dumps(value).encode()) == depth(value)


def test_deep_nesting_does_not_overflow_the_stack(tmp_path):
    """With a raised recursion limit, Python 3.11's parser would end the process."""
    path = tmp_path / "config.json"
    path.write_text('{"a":' * 200_000)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(10**6)
        with pytest.raises(CheckpointError, match="nested deeper"):
            read_json(path)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("content", [b'{"a": "\\ud800"}', b'{"\\udc00": 1}', b'{"a": "\xff"}'])
def test_text_that_is_no_unicode_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        read_json(path)
    path.write_bytes(b'{"a": "\\ud83d\\ude42"}')
    assert read_json(path) == {"a": "🙂"}
