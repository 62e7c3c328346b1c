"""`python -m raymrc` is `raymrc`."""

from __future__ import annotations

import sys

from raymrc.cli import main

if __name__ == "__main__":
    sys.exit(main())
