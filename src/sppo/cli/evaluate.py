"""`sppo evaluate`: the benchmarks, and the evaluation of a run's iteration as a stage."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from sppo.progress import Terminal
from sppo.rundir.folder import RunError, RunFolder

STAGE = "stage"


class _Benchmarks(typer.core.TyperGroup):
    """The benchmarks by name; anything else is the run whose stage is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a word that is no path, and does not look like one, is a benchmark's name misspelt
        if args and (
            args[0].startswith("--")
            or Path(args[0]).exists()
            or Path(args[0]).suffix
            or len(Path(args[0]).parts) > 1
        ):
            args = args if args[0] == "--help" or args[0] in self.commands else [STAGE, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    name="evaluate",
    cls=_Benchmarks,
    help=(
        "Measure policies on a benchmark, or `sppo evaluate RUN [--iteration T] [--run-dir DIR] [--set KEY=VALUE]"
        " [--redo-stale]`: the stage of a run that compares an iteration's policy with the base and the previous one."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Contestants = Annotated[
    list[str],
    typer.Argument(
        metavar="POLICY...",
        help="Policy folders, run folders, hub names or files of outputs; NAME=... names one.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where everything is kept.")]
Oracle = Annotated[
    str | None,
    typer.Option(help="Type, '{type: ..., ...}', a YAML file, a recipe or a run. [default: the first run's]"),
]
Sampling = Annotated[
    str | None,
    typer.Option(help="As a recipe's: '{temperature: 0.7, max_new_tokens: 2048}', or a YAML file."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Of the weights. [default: by the device]")
]
System = Annotated[str | None, typer.Option(help="A system message for the policies.")]
EveryIteration = Annotated[
    bool, typer.Option("--every-iteration", help="A run stands for its base and each of its iterations.")
]
BestOf = Annotated[
    int, typer.Option(min=1, help="Answers of each policy, of which --best-of-oracle takes one.")
]
Chooser = Annotated[
    str | None, typer.Option("--best-of-oracle", help="As --oracle; the paper's best of 16 is by PairRM.")
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge", help="'{url: http://HOST/v1, model: NAME, api_key_env: VARIABLE}', or a YAML file."
    ),
]
JudgePromptFile = Annotated[
    Path | None, typer.Option("--judge-prompt", help="The benchmark's own prompt, from its repository.")
]


@app.command("head-to-head")
def head_to_head(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY...]",
            help="Policy folders, run folders, hub names or files of outputs; NAME=... names one.",
        ),
    ] = None,
    oracle: Oracle = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A file or data set. [default: what the files answer, or the first run's held-out prompts]"
        ),
    ] = None,
    responses: Annotated[int, typer.Option(min=1, help="Of each policy to each prompt.")] = 1,
    sampling: Sampling = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    system: System = None,
    every_iteration: EveryIteration = False,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    votes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of an oracle, people: RUN/arena/votes.parquet of `sppo arena`; may be repeated."
        ),
    ] = None,
    output: Output = Path("evaluations/head-to-head"),
) -> None:
    """P(row > column) between policies by an oracle, with intervals over prompts and the von Neumann winner."""
    from sppo.benchmarks import options
    from sppo.benchmarks import participants as contestants
    from sppo.benchmarks.answering import Decoding
    from sppo.benchmarks.head_to_head import play as head_to_head
    from sppo.recipe import PromptSource

    if votes:
        if policies or oracle:
            raise RunError(
                "--votes: votes say who is compared, and by whom; name neither policies nor --oracle"
            )
        head_to_head.show(Terminal(), head_to_head.of_votes(votes, confidence=confidence, seed=seed))
        return
    if not policies:
        raise RunError("head to head needs at least two policies or files of outputs, or --votes")
    found = contestants.resolve(policies, every_iteration=every_iteration)
    run = next((run for run in map(contestants.run_of, policies) if run is not None), None)
    if oracle is None and run is None:
        raise RunError("no oracle: name one with --oracle, e.g. --oracle '{type: pairrm, model: PATH}'")
    asked = None
    if prompts is not None:
        asked = head_to_head.read_prompts(PromptSource.model_validate({"source": prompts}))
    elif run is not None and all(one.is_policy for one in found):
        asked = contestants.held_out_prompts(run)
    decoding = Decoding(options.read_sampling(sampling), seed, dtype, system)
    terminal = Terminal()
    with RunFolder(output).locked():
        result = head_to_head.play(
            output,
            found,
            options.read_oracle(oracle or str(run)),
            asked,
            decoding,
            terminal,
            responses=responses,
            confidence=confidence,
        )
    head_to_head.show(terminal, result)
    terminal.say(f"all of it is in {output / 'head-to-head.json'}")


@app.command("alpaca-eval")
def alpaca_eval(
    policies: Annotated[
        list[str] | None, typer.Argument(metavar="[POLICY...]", help="As for head-to-head.")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="Score a file of judgments that was made elsewhere; may be repeated."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Its outputs, which name the instructions. [default: the hub's GPT-4 Turbo]"),
    ] = None,
    length_control: Annotated[
        Path | None,
        typer.Option(
            "--length-control", help="Your copy of df_gamed.csv, or its folder. [default: the hub's]"
        ),
    ] = None,
    no_length_control: Annotated[
        bool, typer.Option("--no-length-control", help="Win rates alone, for instructions of your own.")
    ] = False,
    judge: JudgeOption = None,
    judge_prompt: JudgePromptFile = None,
    oracle: Annotated[
        str | None,
        typer.Option(help="Instead of --judge: type, '{type: ..., ...}', a YAML file, a recipe or a run."),
    ] = None,
    best_of: BestOf = 1,
    best_of_oracle: Chooser = None,
    sampling: Sampling = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    system: System = None,
    every_iteration: EveryIteration = False,
    output: Output = Path("evaluations/alpaca-eval"),
) -> None:
    """AlpacaEval 2: win rate and length-controlled win rate against the baseline, by a judge or an oracle."""
    from sppo.benchmarks import options
    from sppo.benchmarks import participants as contestants
    from sppo.benchmarks.alpaca_eval import play as alpaca_eval
    from sppo.benchmarks.alpaca_eval.files import read_length_control
    from sppo.benchmarks.alpaca_eval.judge import PROMPT
    from sppo.benchmarks.answering import Decoding
    from sppo.benchmarks.judge_prompts import read_chat_markup
    from sppo.benchmarks.judging import Judge

    found = contestants.resolve(policies or [], every_iteration=every_iteration)
    if not found and not annotations:
        raise RunError("nothing to evaluate: name policies, or files of judgments with --annotations")
    control = None if no_length_control else read_length_control(length_control)
    terminal = Terminal()
    of_files = None if baseline is None else alpaca_eval.read_baseline(baseline).instructions
    rows = [alpaca_eval.score_file(path, control, of_files) for path in annotations or []]
    if found:
        chooser = _chooser(best_of, best_of_oracle)
        _one_of(judge, oracle)
        with RunFolder(output).locked():
            judging = Judge(options.read_judge(judge), output) if judge else options.read_oracle(oracle or "")
            benchmark = alpaca_eval.AlpacaEval(
                output,
                alpaca_eval.read_baseline(baseline),
                control,
                judging,
                PROMPT if judge_prompt is None else read_chat_markup(judge_prompt),
                Decoding(options.read_sampling(sampling), seed, dtype, system),
                terminal,
                best_of=best_of,
                chooser=chooser,
            )
            rows += [benchmark.evaluate(one) for one in found]
            _report(terminal, output, "alpaca-eval", rows, judging)
    alpaca_eval.show(terminal, rows)


Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The benchmark's folder, from its repository: question.jsonl and the answers beside it.",
    ),
]
JudgmentFiles = Annotated[
    list[Path] | None,
    typer.Option("--judgments", help="Score a file of judgments that was made elsewhere; may be repeated."),
]


@app.command("arena-hard")
def arena_hard(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY...]", help="Policies, runs, or files of answers in the benchmark's format."
        ),
    ] = None,
    data: Data = None,
    judgments: JudgmentFiles = None,
    baseline: Annotated[str, typer.Option(help="Its file is DATA/model_answer/NAME.jsonl.")] = "gpt-4-0314",
    judge: JudgeOption = None,
    judge_prompt: JudgePromptFile = None,
    best_of: BestOf = 1,
    best_of_oracle: Chooser = None,
    sampling: Sampling = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    system: System = None,
    every_iteration: EveryIteration = False,
    output: Output = Path("evaluations/arena-hard"),
) -> None:
    """Arena-Hard v0.1: two games a question against the baseline; the probability of beating it, in percent."""
    from sppo.benchmarks import options
    from sppo.benchmarks import participants as contestants
    from sppo.benchmarks.answering import Decoding
    from sppo.benchmarks.arena_hard import play as arena_hard
    from sppo.benchmarks.arena_hard.score import PROMPT, read_prompt
    from sppo.benchmarks.judging import Judge

    found = contestants.resolve(policies or [], every_iteration=every_iteration)
    terminal = Terminal()
    rows = [arena_hard.score_file(path, seed) for path in judgments or []]
    _something_to_do(found, judgments)
    if found:
        chooser = _chooser(best_of, best_of_oracle)
        with RunFolder(output).locked():
            judging = Judge(options.read_judge(_needed(judge, "--judge")), output)
            benchmark = arena_hard.ArenaHard(
                output,
                _needed(data, "--data"),
                baseline,
                judging,
                PROMPT if judge_prompt is None else read_prompt(judge_prompt),
                Decoding(options.read_sampling(sampling), seed, dtype, system),
                terminal,
                best_of=best_of,
                chooser=chooser,
            )
            rows += [benchmark.evaluate(one) for one in found]
            _report(terminal, output, "arena-hard", rows, judging)
    arena_hard.show(terminal, rows)


@app.command("mt-bench")
def mt_bench(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY...]", help="Policies, runs, or files of answers in FastChat's format."
        ),
    ] = None,
    data: Data = None,
    judgments: JudgmentFiles = None,
    reference: Annotated[str, typer.Option(help="Its file is DATA/reference_answer/NAME.jsonl.")] = "gpt-4",
    judge: JudgeOption = None,
    judge_prompt: JudgePromptFile = None,
    sampling: Sampling = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    system: System = None,
    every_iteration: EveryIteration = False,
    output: Output = Path("evaluations/mt-bench"),
) -> None:
    """MT-Bench: 80 questions of two turns, each answer graded from 1 to 10."""
    from sppo.benchmarks import options
    from sppo.benchmarks import participants as contestants
    from sppo.benchmarks.answering import Decoding
    from sppo.benchmarks.judging import Judge
    from sppo.benchmarks.mt_bench import play as mt_bench
    from sppo.benchmarks.mt_bench.score import PROMPTS, read_prompts

    found = contestants.resolve(policies or [], every_iteration=every_iteration)
    terminal = Terminal()
    rows = [row for path in judgments or [] for row in mt_bench.score_file(path)]
    _something_to_do(found, judgments)
    if found:
        with RunFolder(output).locked():
            judging = Judge(options.read_judge(_needed(judge, "--judge")), output)
            benchmark = mt_bench.MtBench(
                output,
                _needed(data, "--data"),
                reference,
                judging,
                PROMPTS if judge_prompt is None else read_prompts(judge_prompt),
                Decoding(options.read_sampling(sampling), seed, dtype, system),
                terminal,
            )
            rows += [benchmark.evaluate(one) for one in found]
            _report(terminal, output, "mt-bench", rows, judging)
    mt_bench.show(terminal, rows)


@app.command("open-llm")
def open_llm(
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="Policies, runs or hub names.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Local data: TASK/SPLIT.jsonl. [default: the hub's]")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="arc, truthfulqa, winogrande, gsm8k, hellaswag or mmlu; may be repeated. [default: all]"
        ),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="A number, or auto.")] = "8",
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many examples of each task, for a first look.")
    ] = None,
    chat_template: Annotated[
        bool,
        typer.Option("--chat-template", help="Prompts as chat messages; the leaderboard has them plain."),
    ] = False,
    dtype: Dtype = None,
    every_iteration: EveryIteration = False,
    output: Output = Path("evaluations/open-llm"),
) -> None:
    """Open LLM Leaderboard: ARC, HellaSwag, MMLU, TruthfulQA, WinoGrande and GSM8K with its shots, by lm-eval."""
    from sppo.benchmarks import participants as contestants
    from sppo.benchmarks.open_llm import play as open_llm

    found = contestants.resolve(policies, every_iteration=every_iteration)
    terminal = Terminal()
    with RunFolder(output).locked():
        benchmark = open_llm.OpenLlm(
            output,
            data,
            task,
            terminal,
            dtype=dtype,
            batch_size=batch_size,
            limit=limit,
            chat_template=chat_template,
        )
        rows = [benchmark.evaluate(one) for one in found]
        _report(terminal, output, "open-llm", rows, None)
    open_llm.show(terminal, rows)


def _something_to_do(found: Any, files: Any) -> None:
    if not found and not files:
        raise RunError("nothing to evaluate: name policies, or files of judgments with --judgments")


def _needed(value: Any, option: str) -> Any:
    if value is None:
        raise RunError(f"{option} is missing; see `sppo evaluate BENCHMARK --help`")
    return value


def _one_of(judge: str | None, oracle: str | None) -> None:
    if (judge is None) == (oracle is None):
        raise RunError(
            "who judges? name a judge behind a server with --judge, or an oracle with --oracle, not both"
        )


def _chooser(best_of: int, oracle: str | None) -> Any:
    from sppo.benchmarks import options

    if best_of > 1 and oracle is None:
        raise RunError("--best-of: name the oracle that chooses with --best-of-oracle")
    return None if best_of == 1 else options.read_oracle(oracle or "")


def _report(terminal: Terminal, output: Path, name: str, rows: list[dict[str, Any]], judge: Any) -> None:
    """Write all rows of this call, and say what judging has cost."""
    from sppo.benchmarks.judging import Judge
    from sppo.benchmarks.results import cost_line, save

    save(output / f"{name}.json", name, {"results": rows})
    if isinstance(judge, Judge):
        terminal.say(cost_line(judge.endpoint.usage), "bright_black")
    terminal.say(f"all of it is in {output / name}.json")
