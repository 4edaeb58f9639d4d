"""The command line: ``adamas-core`` and a command, of which COMMANDS has all."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from .. import __version__
from . import compare, convert_onnx, demo, export_onnx, generate, info, mechanisms, streams
from .parser import Parser, UsageError, Version, joined

COMMANDS = {
    "generate": generate,
    "compare": compare,
    "mechanisms": mechanisms,
    "export-onnx": export_onnx,
    "convert-onnx": convert_onnx,
    "info": info,
    "demo": demo,
}

# As a shell reports a program that SIGINT or SIGPIPE ended.
INTERRUPTED, CLOSED_PIPE = 130, 141
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, and a limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success. After an error, which is one sentence on stderr, it is 2. After Ctrl-C it is 130.
    It is 141, without a sentence, where the reader of the output has gone.
    """
    streams.prepare()
    name = "adamas-core"
    try:
        try:
            args = commands().parse_args(joined(sys.argv[1:] if argv is None else argv))
            name = f"adamas-core {args.command}"
            status: int = COMMANDS[args.command].run(args)
        except SystemExit:  # --help and --version
            status = 0
        streams.finish()
        return status
    except UsageError as error:
        return failed(str(error), 2)
    except KeyboardInterrupt:
        return failed(f"{name}: interrupted", INTERRUPTED)
    except BrokenPipeError:
        streams.discard("stdout")
        streams.discard("stderr")
        return CLOSED_PIPE
    except (ImportError, MemoryError, OSError, ValueError) as error:
        return failed(f"{name}: {sentence(error)}", 2)


def failed(line: str, status: int) -> int:
    """Print a line on stderr, and return the status."""
    streams.tell(line)
    try:
        streams.finish()
    except OSError:
        streams.discard("stdout")
    return status


def commands() -> Parser:
    """The parser of all commands."""
    whole = Parser(
        prog="adamas-core",
        description="Adamas sparse attention for long-context decoding, outside PyTorch.",
    )
    whole.add_argument("--version", action=Version, const=f"adamas-core {__version__}")
    added: argparse._SubParsersAction[Parser] = whole.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    for name, module in COMMANDS.items():
        purpose = module.__doc__.splitlines()[0] if module.__doc__ else ""
        module.arguments(added.add_parser(name, help=purpose, description=purpose))
    return whole


def sentence(error: Exception) -> str:
    """An error in one sentence that is never empty."""
    if isinstance(error, OSError) and error.strerror:
        named = error.filename2 or error.filename
        if named is None and error.errno in FULL:
            named = "stdout"  # all that is written elsewhere has a name
        return error.strerror if named is None else f"{named}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory{f': {error}' if str(error) else ''}"
    return str(error) or type(error).__name__
