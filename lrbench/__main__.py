"""``python -m lrbench`` is the command ``lrbench``."""

import sys

from lrbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
