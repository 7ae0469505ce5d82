"""`python -m streamd`."""

from __future__ import annotations

import sys

from streamd.cli import main

if __name__ == "__main__":
    sys.exit(main())
