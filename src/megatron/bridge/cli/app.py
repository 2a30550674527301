"""The command line put together: its commands in the order of the help, and how a run of one ends."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from megatron.bridge import __version__
from megatron.bridge.cli import convert, output, prove, quickstart, ranks, use
from megatron.bridge.errors import BridgeError

# By the panel of the help that shows them.
_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Start here": {"quickstart": quickstart.quickstart, "inspect": use.inspect},
    "Convert": {"import": convert.import_, "export": convert.export, "dequantize": convert.dequantize},
    "Prove": {"verify": prove.verify, "roundtrip": prove.roundtrip, "compare": prove.compare},
    "Use": {"generate": use.generate, "models": use.models},
}


class _Command(typer.core.TyperCommand):
    """A command whose help does not list `--help`, which its reader knows: that leaves more room for the others."""

    def get_help_option(self, ctx: Any) -> typer.core.TyperOption | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option


app = typer.Typer(
    name="megatron-bridge",
    help="Takes Hugging Face models to Megatron-Core and back, with proof.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad input.\n\n`megatron-bridge CMD --help` shows an example.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _panel, _commands in _COMMANDS.items():
    for _name, _function in _commands.items():
        app.command(_name, cls=_Command, rich_help_panel=_panel)(_function)


def run() -> NoReturn:
    """The program: `main`, and then the end of the process, with what is registered with `atexit` on the way.

    After that, Python would take thousands of modules apart, which takes half a second.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # the first to be registered, so the last to be called
    codes.append(main())
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for code in codes:  # none if an exception ended `main`
        os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; default: this process's.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 bad input.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    if not debug:
        output.quiet()
    try:
        app(args=argv, obj=argv, prog_name="megatron-bridge")
    except SystemExit as end:
        return int(end.code or 0)
    except BridgeError as error:
        if debug:
            raise
        output.print_error(error, "--json" in argv)
        return output.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return output.EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        ranks.leave()
    return output.EXIT_OK


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megatron-bridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
