"""The command line: ``adamas-core generate``, ``compare``, ``info`` and ``demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import compare, demo, generate, info

COMMANDS = {"generate": generate, "compare": compare, "info": info, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 on success, 2 after an error, which is one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="adamas-core",
        description="Adamas sparse attention for long-context decoding, outside PyTorch.",
    )
    parser.add_argument("--version", action="version", version=f"adamas-core {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        purpose = module.__doc__.splitlines()[0] if module.__doc__ else ""
        module.arguments(commands.add_parser(name, help=purpose, description=purpose))
    args = parser.parse_args(argv)
    try:
        status: int = COMMANDS[args.command].run(args)
        return status
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"adamas-core {args.command}: {error}", file=sys.stderr)
        return 2
