"""A model in several GGUF files: name-00001-of-00004.gguf and so on.

The first part holds the metadata. Every part holds its own number, the number of parts, and how
many tensors all parts hold together.
"""

from __future__ import annotations

import re
from pathlib import Path

from .gguf_file import GgufFile
from .settings import CheckpointError, Settings

NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def parts(first: GgufFile) -> list[GgufFile]:
    """All files of a model, of which `first` holds the metadata."""
    path = first.path
    settings = Settings(path, first.lookup)
    count = settings.get("split.count", int, 1)
    if count <= 1:
        return [first]
    refuse_later(path, settings)
    name = NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count or int(name["number"]) != 1:
        raise CheckpointError(
            f"{path}: part 1 of {count} by its split.count; expected a name that ends with "
            f"-00001-of-{count:05}.gguf"
        )
    found = [first]
    for number in range(2, count + 1):
        other = path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf")
        found.append(_part(other, number, count))
    _check_tensors(path, found, settings.get("split.tensors.count", int))
    return found


def refuse_later(path: Path, settings: Settings) -> None:
    """Reject a part that is not the first one."""
    number = settings.get("split.no", int, 0) + 1
    if number == 1:
        return
    name = NAME.fullmatch(path.name)
    first = f"{name['stem']}-00001-of-{name['count']}.gguf" if name else "the first part"
    raise CheckpointError(
        f"{path}: part {number} of {settings.get('split.count', int)}; expected {first}, which "
        "holds the metadata"
    )


def _part(path: Path, number: int, count: int) -> GgufFile:
    if not path.exists():
        raise CheckpointError(f"{path}: missing, part {number} of the {count} of this model")
    part = GgufFile(path)
    settings = Settings(path, part.lookup)
    here = settings.get("split.no", int) + 1, settings.get("split.count", int)
    if here != (number, count):
        raise CheckpointError(
            f"{path}: part {here[0]} of {here[1]} by its split.no and split.count; expected part "
            f"{number} of {count}, as its name says"
        )
    return part


def _check_tensors(path: Path, found: list[GgufFile], expected: int) -> None:
    where: dict[str, Path] = {}
    for part in found:
        for tensor in part.tensors:
            if tensor.name in where:
                raise CheckpointError(
                    f"{part.path}: tensor {tensor.name} is in {where[tensor.name].name}, too"
                )
            where[tensor.name] = part.path
    if len(where) != expected:
        raise CheckpointError(
            f"{path}: its {len(found)} parts hold {len(where)} tensors; expected {expected}, its "
            "split.tensors.count"
        )
