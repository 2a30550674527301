"""`python -m megatron.bridge`: the command line, without the installed script."""

import sys

from megatron.bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
