"""``python -m nerftrain`` is ``nerftrain``."""

import sys

from nerftrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
