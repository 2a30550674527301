"""`python -m megatron.bridge`: the command line, without the installed script."""

from megatron.bridge.cli import run

if __name__ == "__main__":
    run()
