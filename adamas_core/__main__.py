"""``python -m adamas_core``."""

from .cli import main

raise SystemExit(main())
