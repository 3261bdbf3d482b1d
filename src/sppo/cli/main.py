"""The `sppo` command: its groups of commands, its help page, and how errors are shown."""

import errno
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from sppo import __version__
from sppo.cli import evaluate, game, look, options, oracle, policies, run, start

FAILED, STOPPED, INTERRUPTED = 1, 3, 130
"""The exit codes after an error, after the guard has stopped a run, and after Ctrl-C."""

_LONGEST_ERROR = 10_000
"""Characters; the text of an error from elsewhere can have megabytes."""


_PATH_AT_HOME = re.compile(r"^((?:[^\s=]+=)?)~(?=/\S*$)")


class _Commands(typer.core.TyperGroup):
    """The group of all commands. It shows expected errors in words, without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Expand the `~` of paths first; shells leave it alone behind `NAME=` and `--option=`."""
        expanded = [_PATH_AT_HOME.sub(lambda match: f"{match[1]}{Path.home()}", text) for text in args]
        return super().parse_args(ctx, expanded)

    def invoke(self, ctx: Any) -> Any:
        from rich.console import Console

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            message = "\ninterrupted; every finished shard is kept: run the same command again to continue"
            Console(stderr=True).print(message, style="yellow", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, OSError, RuntimeError) as error:
            raise typer.Exit(show_expected_error(error)) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands under the headings of their groups, with whole summaries."""
        for heading in options.HEADINGS:
            rows = [
                (name, command.help)
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == heading
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def show_expected_error(error: Exception) -> int:
    """Print an error of this package or of the operating system and return the exit code.

    Raises:
        Exception: the error itself where it is of any other kind, because then it is a bug of this program.
    """
    from rich.console import Console
    from rich.text import Text

    from sppo.progress import printable, shortened

    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = (
            f"no space left on the disk ({error.filename or text}); free some space, then run the same command"
            " again to continue"
        )
    elif isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        text = f"{error}; a file or folder of another kind lies at this path: move it away"
    elif type(error).__module__.split(".")[0] != "sppo" and not isinstance(error, OSError):
        raise error
    shown = printable(shortened(text, _LONGEST_ERROR))
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), shown), soft_wrap=True)
    # the class lies in a module that loads the loop, which an error of the recipe has no need of
    return STOPPED if type(error).__name__ == "GuardStop" else FAILED


app = typer.Typer(
    name="sppo",
    cls=_Commands,
    help="Self-play preference optimisation of language models (SPPO, arXiv:2405.00675).",
    epilog="Start with: sppo run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _unnamed in (start.app, run.app, look.app, policies.app, oracle.app):
    app.add_typer(_unnamed)  # its commands become commands of `sppo`
app.add_typer(evaluate.app, rich_help_panel=options.MEASURE)
app.add_typer(oracle.oracle_app, rich_help_panel=options.MEASURE)
app.add_typer(game.app, rich_help_panel=options.MEASURE)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"sppo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command that `sys.argv` names."""
    app()


if __name__ == "__main__":
    main()
