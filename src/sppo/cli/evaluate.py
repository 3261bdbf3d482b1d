"""`sppo evaluate`: the benchmarks, each found by its name, and the evaluation of a run's iteration as a stage."""

from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main

from sppo.recipe import registry

STAGE = "stage"


class _Benchmarks(typer.core.TyperGroup):
    """Commands are the benchmarks by name; anything that looks like a path names the run whose stage is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a word that is no path, and does not look like one, is a benchmark's name misspelt
        if args and (
            args[0].startswith("--")
            or Path(args[0]).exists()
            or Path(args[0]).suffix
            or len(Path(args[0]).parts) > 1
        ):
            args = args if args[0] == "--help" or args[0] in self.list_commands(ctx) else [STAGE, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def list_commands(self, ctx: Any) -> list[str]:
        return [*registry.names("benchmarks"), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a benchmark, imported only when it is asked for."""
        if cmd_name not in registry.names("benchmarks"):
            return super().get_command(ctx, cmd_name)
        benchmark = registry.load("benchmarks", cmd_name)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        alone.command(name=cmd_name, help=benchmark.help)(benchmark.command)
        return typer.main.get_command(alone)


app = typer.Typer(
    name="evaluate",
    cls=_Benchmarks,
    help=(
        "Evaluate policies on a benchmark. `sppo evaluate RUN [--iteration T] [--run-dir DIR] [--set KEY=VALUE]"
        " [--redo-stale]` runs the evaluation stage of a run, which compares an iteration's policy with the base policy"
        " and the previous one."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
