"""JSON files that hold an object, and those that cannot be read."""

from __future__ import annotations

import pytest

from adamas_core.llama import CheckpointError
from adamas_core.llama.json_file import read_json


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
