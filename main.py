"""Entry of the command line: `python main.py --help`; the same as the installed `sliceprop`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from sliceprop.cli import main

    sys.exit(main())
