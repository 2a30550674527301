"""The command line, `megatron-bridge`. Importing it, and every `--help`, imports neither torch nor megatron-core."""

from megatron.bridge.cli.app import main, run

__all__ = ["main", "run"]
