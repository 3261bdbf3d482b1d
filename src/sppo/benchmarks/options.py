"""The options that the benchmarks' commands share, and what their values mean."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sppo import recipe
from sppo.output_options import OutputOptions as OutputOptions
from sppo.output_options import expanded as expanded
from sppo.recipe import EndpointConfig, OracleConfig, RecipeError, Sampling
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader, with_run_policies

if TYPE_CHECKING:
    from sppo.benchmarks.evaluation import Evaluation
    from sppo.benchmarks.judge_server import Judge
    from sppo.benchmarks.participants import Participant

Oracle = Annotated[
    str | None,
    typer.Option(
        "--oracle",
        help="The oracle that compares: a type, '{type: ..., ...}', a YAML file, a recipe or a run.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="The benchmark's data folder: question.jsonl and the files of responses beside it."
    ),
]
JudgmentFiles = Annotated[
    list[Path] | None,
    typer.Option("--judgments", help="Score a file of judgments made elsewhere; may be repeated."),
]


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(OutputOptions):
    """The options of every benchmark: the policies to evaluate, how they are opened, and where results are kept."""

    policies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="POLICY",
            help="Policy folders, run folders, hub names or files of outputs; NAME=PATH gives one a name of its own.",
        ),
    ] = None
    every_iteration: Annotated[
        bool,
        typer.Option(
            "--every-iteration", help="Evaluate a run's base policy and the policy of each of its iterations."
        ),
    ] = False
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(
            "--dtype",
            help="Data type of the policies' weights. [default: bfloat16 on an accelerator, float32 without]",
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How policies are opened, by the recipe's keys: policy.trust_remote_code=true,"
            " policy.chat_template=FILE, prompts.system=merge. [default: as the recipe of a policy's run says]",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The folder in which all results are kept. [default: evaluations/BENCHMARK]",
        ),
    ] = None

    def show(self, table: tuple[list[str], list[list[Any]]], results: Sequence[Mapping[str, Any]]) -> None:
        """Print a benchmark's table, or its results as JSON."""
        from sppo.benchmarks.results import show_table

        show_table(self.terminal, *table)
        self.terminal.show_json(results)

    def participants(self) -> list["Participant"]:
        """The policies and output files that the command line names."""
        from sppo.benchmarks import participants

        overrides = recipe.read_overrides(self.set_)
        return participants.resolve(
            self.policies or [], every_iteration=self.every_iteration, overrides=overrides
        )

    def home(self, benchmark: str) -> Path:
        """The folder in which the results of a benchmark are kept."""
        return self.output or Path("evaluations") / benchmark


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(PolicyOptions):
    """The options of every benchmark whose policies respond to questions."""

    sampling: Annotated[
        str | None,
        typer.Option(
            "--sampling",
            help="Sampling settings as in a recipe: '{temperature: 0.7, max_new_tokens: 2048}', or a YAML file.",
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed for sampling.")] = 0
    system: Annotated[str | None, typer.Option("--system", help="A system message for the policies.")] = None

    @contextlib.contextmanager
    def evaluation(
        self, benchmark: str, best_of: "BestOfOptions | None" = None, run: Path | None = None
    ) -> Iterator["Evaluation"]:
        """The state that the parts of the evaluation share. Its folder is locked against other processes meanwhile.

        Args:
            benchmark: the benchmark's name.
            best_of: how many responses each policy gives, and which oracle chooses among them.
            run: the run whose sampling settings hold where the command line names none.
        """
        from sppo.benchmarks.evaluation import Evaluation
        from sppo.benchmarks.responses import Decoding

        best_of = best_of or BestOfOptions()
        chooser = best_of.oracle()
        decoding = Decoding(read_sampling(self.sampling, run), self.seed, self.dtype, self.system)
        home = self.home(benchmark)
        with RunFolder(home).locked():
            yield Evaluation(benchmark, home, decoding, self.terminal, best_of.best_of, chooser)


@dataclass(frozen=True, kw_only=True)
class BestOfOptions:
    """The options of benchmarks that can evaluate the best of several responses."""

    best_of: Annotated[
        int,
        typer.Option(
            "--best-of",
            min=1,
            help="Sample this many responses and evaluate the one that --best-of-oracle prefers.",
        ),
    ] = 1
    best_of_oracle: Annotated[
        str | None,
        typer.Option(
            "--best-of-oracle",
            help="The oracle that chooses the best response; the paper uses PairRM for best of 16.",
        ),
    ] = None

    def oracle(self) -> OracleConfig | None:
        """The oracle that chooses the best of n responses; None where each policy responds once.

        Raises:
            RunError: there are several responses and no oracle.
            RecipeError: the oracle's configuration is wrong.
        """
        if self.best_of > 1 and self.best_of_oracle is None:
            raise RunError("--best-of: name the oracle that chooses with --best-of-oracle")
        return None if self.best_of == 1 else read_oracle(self.best_of_oracle or "")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The options of benchmarks that ask a judge."""

    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="The judge's server: '{url: http://HOST/v1, model: NAME, api_key_env: VARIABLE}', or a YAML file.",
        ),
    ] = None
    judge_prompt: Annotated[
        Path | None,
        typer.Option("--judge-prompt", help="The benchmark's own judge prompt, a file of its repository."),
    ] = None

    responses_only: Annotated[
        bool,
        typer.Option(
            "--responses-only",
            help="Write the policies' responses in the benchmark's format, and ask no judge.",
        ),
    ] = False

    def is_without_judging(self, judgments: Sequence[Path] | None, oracle: str | None = None) -> bool:
        """Whether the command ends when the policies have responded.

        Raises:
            RunError: judgments are asked for as well.
        """
        if self.responses_only and (self.judge or judgments or oracle):
            raise RunError(
                "--responses-only: no judge is asked; leave out --judge, --oracle and files of judgments"
            )
        return self.responses_only

    def server(self, home: Path) -> "Judge":
        """The judge, whose answers are kept in a folder.

        Raises:
            RunError: no judge was named.
            RecipeError: its mapping is wrong.
        """
        from sppo.benchmarks.judge_server import Judge

        return Judge(read_judge(needed(self.judge, "--judge")), home)


def needed(value: Any, option: str) -> Any:
    """The value of an option that this call cannot do without.

    Raises:
        RunError: the option was not given.
    """
    if value is None:
        raise RunError(f"{option} is missing; see `sppo evaluate BENCHMARK --help`")
    return value


def require_policies_or_judgments(
    policies: Sequence[Any], judgments: Sequence[Path] | None, option: str = "--judgments"
) -> None:
    """Check that a command has something to do.

    Raises:
        RunError: neither policies nor files of judgments were named.
    """
    if not policies and not judgments:
        raise RunError(f"nothing to evaluate: name policies, or files of judgments with {option}")


def read_oracle(text: str) -> OracleConfig:
    """An oracle: its type, a mapping as in a recipe, a file with one, a recipe, or a run's held-out oracle.

    Raises:
        RecipeError: it is none of these, or a field is wrong.
    """
    path = Path(text)
    if (path / "recipe.yaml").is_file():
        reader = RunReader(path)
        return with_run_policies(reader, reader.recipe.needed_held_out_oracle(f"--oracle {text}"))
    value = _value(text, "--oracle")
    if isinstance(value, str):
        value = {"type": value}
    mapping = _mapping(value, "--oracle")
    # a recipe, or what a recipe says under `oracle:`, which has a type and may have an oracle inside it
    is_recipe = "oracle" in mapping and "type" not in mapping
    return recipe.parse_oracle(_mapping(mapping["oracle"], "oracle") if is_recipe else mapping)


def read_judge(text: str) -> EndpointConfig:
    """A judge behind an OpenAI-compatible server: a mapping with `url` and `model`, or a file with one.

    Raises:
        RecipeError: it is neither, or a field is wrong.
    """
    return recipe.parse_endpoint(_mapping(_value(text, "--judge"), "--judge"))


def read_sampling(text: str | None, run: Path | None = None) -> Sampling:
    """Sampling settings: a mapping as in a recipe's `sampling:`, a file with one, or a recipe.

    Args:
        text: the value of `--sampling`; None takes the settings of the run, or else the defaults.
        run: a run folder.

    Raises:
        RecipeError: it is none of these, or a field is wrong.
    """
    if text is None:
        return recipe.parse_sampling({}) if run is None else RunReader(run).recipe.sampling
    mapping = _mapping(_value(text, "--sampling"), "--sampling")
    return recipe.parse_sampling(mapping.get("sampling", mapping))


def _value(text: str, option: str) -> Any:
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise RecipeError(f"{option}: there is no file {path}")
        return recipe.read_value(path.read_text(encoding="utf-8"), name=f"{option} {path}")
    return recipe.read_value(text, name=option)


def _mapping(value: Any, option: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(
            f"{option}: a mapping like '{{key: value}}' or a file with one is expected, not {value!r}"
        )
    return value
