"""`sppo evaluate`: a command for each benchmark, and the evaluation stage of a run."""

from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main

from sppo.cli.run import stage_command

STAGE = "stage"


class _Benchmarks(typer.core.TyperGroup):
    """The benchmarks by name; an argument that looks like a path names the run whose evaluation stage is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in ("--help", "-h") and args[0] not in self.list_commands(ctx):
            path = Path(args[0])
            if args[0].startswith("-") or path.exists() or path.suffix or len(path.parts) > 1:
                args = [STAGE, *args]
            else:  # a misspelt benchmark
                from sppo.recipe import registry

                ctx.fail(registry.unknown(args[0], self.list_commands(ctx)))
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def list_commands(self, ctx: Any) -> list[str]:
        from sppo.recipe import registry

        return [*registry.names("benchmarks"), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a benchmark, which is imported only when it is needed."""
        from sppo.recipe import registry

        if cmd_name not in registry.names("benchmarks"):
            return super().get_command(ctx, cmd_name)
        benchmark = registry.load("benchmarks", cmd_name)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        epilog = f"Example: {benchmark.example}"
        single.command(name=cmd_name, help=benchmark.help, epilog=epilog)(benchmark.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the benchmarks with whole summaries."""
        with formatter.section("Benchmarks"):
            formatter.write_dl([(name, self.get_command(ctx, name).help) for name in self.list_commands(ctx)])


app = typer.Typer(
    name="evaluate",
    cls=_Benchmarks,
    help="Evaluate policies on a benchmark, or run the evaluation stage of a run: `sppo evaluate RUN`.",
    epilog="Examples: sppo evaluate head-to-head runs/quickstart --oracle panel; sppo evaluate runs/quickstart -t 2",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(
    STAGE,
    help="Compare an iteration's policy with the base and the previous policy on the held-out prompts of a run.",
    epilog="Example: sppo evaluate runs/quickstart --iteration 1",
)(stage_command("evaluate"))
