"""The stages of one iteration, each from the run folder's tables to its tables.

Every stage is planned first (where it lies, what its result depends on) and then run where it is not done.
The randomness of a stage is keyed by (seed, iteration, prompt, k).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sppo import oracle as oracles
from sppo import prompts as prompt_sources
from sppo import randomness
from sppo.benchmarks.head_to_head import score as head_to_head
from sppo.executors.local import Executor, Local
from sppo.game import cyclic_triples
from sppo.policy import adapter as adapters
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.progress import Terminal
from sppo.recipe import ANSWERS, PromptSource, Recipe, keep_answers_in
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder, StageFolder, describe, publish_folder
from sppo.rundir.guard import alarms
from sppo.rundir.shards import file_digest, read_shard
from sppo.stages.models import Models
from sppo.stages.work import (
    ORACLE_PROMPTS,
    Annotate,
    Draw,
    Kind,
    Select,
    ShardJob,
    Work,
    read_rows,
    response_texts,
)
from sppo.training import TrainingJob, opponent

StageName = Literal["sample", "annotate", "select", "train", "evaluate"]
HELD_OUT = 0
"""The iteration number of what belongs to the base policy and the held-out prompts."""


@dataclass(frozen=True)
class PolicyState:
    """A policy of the run: its folder, and the fingerprint that its descendants depend on."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Turn:
    """The stages of one iteration, planned.

    Attributes:
        number: t.
        policy: pi_t.
        previous: the iteration whose evaluation answered with pi_t; 0 for the base.
        reference_policies: the further policies that the algorithm asks for.
        stages: sample, annotate, select, train, evaluate; without the first two or the second where the algorithm
            needs no responses of pi_t, or nothing that the oracle says of them.
    """

    number: int
    policy: PolicyState
    previous: int
    reference_policies: tuple[PolicyState, ...]
    stages: dict[StageName, StageFolder]

    def read_by_select(self) -> list[StageFolder]:
        """The stages whose shards what is trained on is chosen from."""
        return [self.stages[name] for name in ("sample", "annotate") if name in self.stages]


class Stages:
    """The stages of a run.

    Args:
        recipe: what the run is made from.
        run: its folder.
        terminal: where progress is shown.
        executor: where shards and policies are computed; None: on this machine.
    """

    def __init__(
        self, recipe: Recipe, run: RunFolder, terminal: Terminal, executor: Executor | None = None
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.terminal = terminal
        self.executor = executor or Local(recipe)
        self.models = Models(keep_answers_in(recipe, (run.path / ANSWERS).resolve()))

    # What the stages stand on, each made when first needed.

    @cached_property
    def base(self) -> PolicyState:
        """pi_1."""
        return PolicyState(self.models.base, policies.digest(self.models.base))

    @property
    def chat(self) -> chat_format.ChatFormat:
        """The tokenizer and template, which all policies of the run share."""
        return self.models.chat

    def check_adapter(self) -> None:
        """Refuse an adapter that the base policy cannot take; as :func:`sppo.training.lora.check`."""
        of, settings = self.recipe.policy, self.recipe.training.adapter
        if settings is not None or adapters.is_adapter(self.base.folder):
            from sppo.training import lora

            lora.check(
                settings,
                self.base.folder,
                engine=self.recipe.sampling.engine,
                quantization=of.quantization,
                trust_remote_code=of.trust_remote_code,
            )

    # The plan: settings and upstream fingerprints of each stage.

    def prompts_stage(self, iteration: int) -> StageFolder:
        """The prompts of an iteration; those of iteration 0 are held out."""
        of = self.recipe.prompts
        sources = [of.train] if isinstance(of.train, PromptSource) else of.train
        dealt: list[Any] = [of.per_iteration, len(sources)]
        if of.per_iteration is None and len(sources) == 1:
            dealt.append(self.recipe.iterations)
        settings = {
            "train": [_source_identity(source) for source in sources],
            "held_out": of.held_out if isinstance(of.held_out, int) else _source_identity(of.held_out),
            "dealt": dealt if iteration != HELD_OUT else None,
            "max_tokens": self.prompt_limit,
            "invalid": of.invalid,
            "system": of.system,
            "seed": self.recipe.seed,
            "shard_prompts": self.recipe.shard_prompts,
            "tokenizer": self._tokenizer_identity,
        }
        return self.run.stage("prompts", iteration, settings, [], folder="prompts")

    def sample_stage(self, iteration: int, policy: PolicyState) -> StageFolder:
        """y_1..K ~ pi_t(. | x) for the prompts of the iteration."""
        upstream = [self.prompts_stage(iteration).fingerprint, policy.fingerprint]
        return self.run.stage("sample", iteration, self._sampling_identity(), upstream, folder="responses")

    def annotate_stage(self, iteration: int, sample: StageFolder) -> StageFolder:
        """P(y_i > y_j | x) for every pair of the K."""
        oracle = self.recipe.needed_oracle("the annotate stage")
        settings = {"oracle": oracles.identity(oracle), **self._template_identity}
        opponents_of_each = getattr(oracle, "opponents", None)
        if opponents_of_each is not None:
            settings["opponents"] = [opponents_of_each, self.recipe.seed]
        return self.run.stage("annotate", iteration, settings, [sample.fingerprint], folder="preferences")

    def select_stage(
        self, iteration: int, read: Sequence[StageFolder], reference_policies: Sequence[PolicyState] = ()
    ) -> StageFolder:
        """P^, the responses that are trained on, and log pi_t of each.

        Args:
            iteration: t.
            read: the stages that they are chosen from; none: the prompts alone.
            reference_policies: further policies whose log-probabilities are wanted.
        """
        training = self.recipe.training
        settings = {
            "selection": self.recipe.selection,
            "algorithm": self.recipe.algorithm.model_dump(exclude={"reduction"}),
            "truncated_responses": training.truncated_responses,
            "max_tokens": self.models.training_limit,
            "opponent_log_probs": training.opponent_log_probs,
            "mixed_precision": training.mixed_precision,
            "pack_tokens": training.pack_tokens,
            "dtype": self.recipe.policy.dtype,
            "seed": self.recipe.seed,
        }
        upstream = [stage.fingerprint for stage in read or [self.prompts_stage(iteration)]]
        upstream += [policy.fingerprint for policy in reference_policies]
        return self.run.stage("select", iteration, settings, upstream, folder="training")

    def train_stage(self, iteration: int, selected: StageFolder) -> StageFolder:
        """pi_{t+1} = argmin E (log pi/pi_t - eta (P^ - 1/2))^2."""
        settings = {
            "algorithm": self.recipe.algorithm.model_dump(),
            "training": self.recipe.training.decisive(),
            "policy": self.recipe.policy.model_dump(include={"dtype", "attn_implementation", "quantization"}),
            "seed": self.recipe.seed,
        }
        return self.run.stage("train", iteration, settings, [selected.fingerprint], folder="policy")

    def evaluate_stage(self, iteration: int, policy: PolicyState, previous: PolicyState) -> StageFolder:
        """pi_{t+1} against the base and against pi_t on the held-out prompts; iteration 0: the base alone."""
        settings = {
            **self._sampling_identity(),
            "responses": self.recipe.evaluation.model_dump(exclude={"judge"}),
            "oracle": None if self.recipe.oracle is None else oracles.identity(self.recipe.oracle),
        }
        if self.recipe.evaluation.judge is not None:
            settings["judge"] = oracles.identity(self.recipe.evaluation.judge)
        upstream = [self.prompts_stage(HELD_OUT).fingerprint, policy.fingerprint]
        if iteration > 0:
            upstream += [self.base.fingerprint, previous.fingerprint]
        return self.run.stage(
            "evaluate", iteration, settings, upstream, folder="evaluation", record="evaluation.json"
        )

    # The stages' work.

    def prompts(self, iteration: int) -> StageFolder:
        """Read, check, tokenise and deal out all prompts, unless this iteration has its own already."""
        stage = self.prompts_stage(iteration)
        if stage.is_done():
            return stage
        dealt, counts = self._dealt
        shard = self.recipe.shard_prompts
        part = dealt[iteration]
        sources = [() for _ in range(0, part.num_rows, shard)]
        described = stage.run_shards(sources, lambda number: part.slice(number * shard, shard))
        stage.publish(
            described,
            prompts=part.num_rows,
            read=counts.read,
            doubled_bos=counts.doubled_bos,
            skipped=dict(counts.skipped),
            first_skipped=counts.first_skipped,
        )
        return stage

    def sample(self, iteration: int, policy: PolicyState) -> StageFolder:
        """Draw the K responses to every prompt of the iteration."""
        return self._make([self._sampling(iteration, policy)])[0]

    def annotate(self, iteration: int, sample: StageFolder) -> StageFolder:
        """Ask the oracle about every pair of responses."""
        return self._make([self._annotation(iteration, sample)])[0]

    def sample_and_annotate(self, iteration: int, policy: PolicyState) -> None:
        """What the algorithm needs of both; where the executor can, a shard is annotated as soon as it is sampled."""
        of = self.recipe.algorithm
        planned = [self._sampling(iteration, policy)] if of.samples else []
        if of.preferences:
            planned.append(self._annotation(iteration, planned[0].stage))
        self._make(planned)

    def select(
        self,
        iteration: int,
        policy: PolicyState,
        read: Sequence[StageFolder],
        reference_policies: Sequence[PolicyState] = (),
    ) -> StageFolder:
        """Choose what is trained on, and compute log pi_t of it with the trainer's own code.

        Args:
            iteration: t.
            policy: pi_t.
            read: as :meth:`select_stage` takes them, and `reference_policies`.
            reference_policies: further policies whose log-probabilities are computed as well.
        """
        stage = self.select_stage(iteration, read, reference_policies)
        counts = self._prompt_counts(iteration)
        chosen_from = read or [self.prompts_stage(iteration)]
        sources = [[of.shard(number) for of in chosen_from] for number in range(len(counts))]
        further = tuple((self._weights(one), one.fingerprint) for one in reference_policies)
        work = Select(self._weights(policy), policy.fingerprint, further)

        def publish(shards: list[dict[str, Any]]) -> None:
            found = [
                len(responses)
                for shard in shards
                for responses in read_shard(stage.folder / shard["name"], columns=["responses"])["responses"]
            ]
            prompts = sum(count > 0 for count in found)
            if prompts == 0:
                raise RunError(
                    f"{stage.title}: no prompt has what can be trained on: all responses were cut at"
                    f" sampling.max_new_tokens = {self.recipe.sampling.max_new_tokens} or at the {self.models.training_limit} tokens of prompt"
                    " and response that are trained on; raise sampling.max_new_tokens or training.max_tokens, or set"
                    " training.truncated_responses: train"
                )
            rows = (row for shard in shards for row in read_rows(stage.folder / shard["name"]))
            stage.publish(
                shards,
                trained_prompts=prompts,
                trained_responses=sum(found),
                sampler_deviation=opponent.deviation(rows),
            )

        return self._make([_Planned.of(stage, "prompts", "select", work, sources, counts, publish)])[0]

    def train(
        self,
        iteration: int,
        policy: PolicyState,
        selected: StageFolder,
        reference_policies: Sequence[PolicyState] = (),
    ) -> StageFolder:
        """Fit pi_{t+1}, starting from pi_t."""
        from sppo.training.checkpoints import resumed
        from sppo.training.schedule import learning_rate

        stage = self.train_stage(iteration, selected)
        if stage.is_done():
            return stage
        with self._logged(stage):
            home = self.run.iteration(iteration)
            work, output = home / ".training", home / ".policy"
            storage.remove(output)
            work.mkdir(exist_ok=True)
            job = TrainingJob(
                policy=str(policy.folder),
                opponent=policy.fingerprint,
                reference_policies=[one.fingerprint for one in reference_policies],
                model=self.recipe.policy.model,
                revision=self.recipe.policy.revision,
                shards=[str(path) for path in selected.shards()],
                output=str(output),
                work=str(work),
                metrics=str(self.run.metrics(iteration)),
                prompts=selected.read_record()["trained_prompts"],
                seed=randomness.seed("train", self.recipe.seed, iteration),
                dtype=self.recipe.policy.dtype,
                attn_implementation=self.recipe.policy.attn_implementation,
                trust_remote_code=self.recipe.policy.trust_remote_code,
                quantization=self.recipe.policy.quantization,
                chat_template=self.recipe.policy.chat_template,
                algorithm=self.recipe.algorithm,
                settings=self.recipe.training.on_devices(self.executor.training_devices()),
                report_to=self.recipe.report_to,
                run_name=f"{self.run.path.name}-iter-{iteration}",
                fingerprint=stage.fingerprint,
            )
            of = self.recipe.training
            if not any(
                learning_rate(n, job.steps, of.schedule, of.learning_rate) for n in range(job.steps.kept)
            ):
                raise RunError(
                    f"{stage.title}: all of its {job.steps.kept} steps have a learning rate of 0, since the schedule"
                    " is still at the start of its warm-up; lower training.batch_prompts or training.warmup_ratio"
                )
            storage.fetch(work)
            job = resumed(job, self.terminal.say)
            self.run.forget_metrics(iteration, "train", after=job.begun)
            with self.terminal.bar(stage.title, job.steps.kept, "steps") as advance:
                advance(job.begun)
                self.executor.train(job, advance, self.terminal.say)
            publish_folder(output, stage.folder)
            storage.remove(work)
            files = [describe(path) for path in sorted(stage.folder.iterdir()) if path.is_file()]
            stage.publish([], files=files, steps=job.steps.kept)
        return stage

    def evaluate(self, iteration: int, policy: PolicyState, previous: tuple[int, PolicyState]) -> StageFolder:
        """Answer the held-out prompts with pi_{t+1} and compare with the base and with pi_t.

        Args:
            iteration: t; 0 answers with the base alone.
            policy: pi_{t+1}.
            previous: the iteration whose evaluation answered with pi_t, and pi_t.
        """
        stage = self.evaluate_stage(iteration, policy, previous[1])

        def publish(shards: list[dict[str, Any]]) -> None:
            counted = _with_prompts(stage.folder, shards)
            measured = self._measures(stage, counted, previous[0]) if iteration > 0 else {}
            counts = _response_counts(stage.folder, shards, self.chat.end_of_turn)
            stage.publish(counted, **counts, **measured)

        drawing = Draw(self._weights(policy), self.recipe.evaluation.responses, ("evaluate", iteration))
        return self._make([self._drawing(stage, HELD_OUT, drawing, publish)])[0]

    def alarms(self, evaluated: StageFolder) -> list[str]:
        """What the guard says of an evaluated iteration."""
        base = self.evaluate_stage(HELD_OUT, self.base, self.base).read_record()
        return alarms(evaluated.read_record(), base, self.recipe.guard)

    def trained(self, stage: StageFolder) -> PolicyState:
        """pi_{t+1} of a training stage."""
        return PolicyState(stage.folder, stage.fingerprint)

    # Parts of the stages' work.

    @cached_property
    def prompt_limit(self) -> int:
        """The longest prompt that leaves room for one response of full length."""
        of = self.recipe
        limit = self.models.sampling_limit
        room = limit - of.sampling.max_new_tokens
        if room < 1:
            told = limit < self.models.context
            what = "sampling.engine_args.max_model_len" if told else repr(of.policy.model)
            raise chat_format.ChatError(
                f"sampling.max_new_tokens: {of.sampling.max_new_tokens}, but {what} takes"
                f" {limit} tokens in all; lower it, so that a prompt fits as well"
            )
        return min(room, of.prompts.max_tokens or room)

    @cached_property
    def _tokenizer_identity(self) -> str:
        files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
        folder = policies.tokenizer_folder(self.base.folder)
        present = [folder / name for name in files if (folder / name).is_file()]
        if self.recipe.policy.chat_template is not None:
            present.append(Path(self.recipe.policy.chat_template))
        return ",".join(file_digest(path) for path in present)

    @cached_property
    def _template_identity(self) -> dict[str, Any]:
        oracle = self.recipe.needed_oracle("the annotate stage")
        return {"template": self._tokenizer_identity} if oracle.text == "chat" else {}

    def _sampling_identity(self) -> dict[str, Any]:
        of = self.recipe
        return {
            "sampling": of.sampling.model_dump(),
            "policy": of.policy.model_dump(include={"dtype", "attn_implementation", "quantization"}),
            "seed": of.seed,
        }

    @cached_property
    def _dealt(self) -> tuple[list[pa.Table], prompt_sources.Counts]:
        of = self.recipe.prompts
        for note in self.chat.notes:
            self.terminal.say(f"note: {note}", "yellow")
        with self.terminal.bar("prompts", None, "prompts") as advance:
            split = prompt_sources.split(
                of.train,
                of.held_out,
                iterations=self.recipe.iterations,
                per_iteration=of.per_iteration,
                chat=self.chat,
                max_tokens=self.prompt_limit,
                skip_invalid=of.invalid == "skip",
                seed=self.recipe.seed,
                on_prompt=advance,
            )
        counts = split.counts
        if counts.doubled_bos:
            self.terminal.say(
                f"note: {counts.doubled_bos} prompts had a doubled BOS; one was removed", "yellow"
            )
        for reason, count in counts.skipped.items():
            self.terminal.say(f"note: {count} prompts skipped ({counts.first_skipped[reason]})", "yellow")
        return [split.held_out, *split.iterations], counts

    def _sampling(self, iteration: int, policy: PolicyState) -> "_Planned":
        stage = self.sample_stage(iteration, policy)

        def publish(shards: list[dict[str, Any]]) -> None:
            counts = _response_counts(stage.folder, shards, self.chat.end_of_turn)
            stage.publish(_with_prompts(stage.folder, shards), **counts)

        drawing = Draw(self._weights(policy), self.recipe.sampling.k, ("sample", iteration))
        return self._drawing(stage, iteration, drawing, publish)

    def _drawing(
        self, stage: StageFolder, prompts: int, drawing: Draw, publish: Callable[[list[dict[str, Any]]], None]
    ) -> "_Planned":
        """Responses to the prompts of an iteration."""
        sources = [[path] for path in self.prompts(prompts).shards()]
        units = [count * drawing.k for count in self._prompt_counts(prompts)]
        return _Planned.of(stage, "responses", "sample", drawing, sources, units, publish)

    def _annotation(self, iteration: int, sample: StageFolder) -> "_Planned":
        stage = self.annotate_stage(iteration, sample)
        counts = self._prompt_counts(iteration)
        sources = [[sample.shard(number)] for number in range(len(counts))]

        def publish(shards: list[dict[str, Any]]) -> None:
            rows = [row for shard in shards for row in read_rows(stage.folder / shard["name"])]
            matrices = np.array([row["matrix"] for row in rows])
            # a triple has three pairs: where some were not compared, the share of cycles is not known
            cyclic = None if np.isnan(matrices).any() else float(cyclic_triples(matrices).mean())
            stage.publish(shards, cyclic_triples=cyclic)

        return _Planned.of(
            stage,
            "prompts",
            "annotate",
            Annotate(self.run.metrics(iteration).resolve()),
            sources,
            counts,
            publish,
        )

    def _make(self, planned: "Sequence[_Planned]") -> list[StageFolder]:
        """Make and publish what is not done, and log its seconds."""
        waiting = [one for one in planned if not one.stage.is_done()]
        with contextlib.ExitStack() as clock:

            def made(job: ShardJob) -> None:
                one = waiting.pop(0)
                one.publish(one.stage.describe_shards(job.shards))
                clock.close()
                if waiting:
                    clock.enter_context(self._logged(waiting[0].stage))

            if waiting:
                clock.enter_context(self._logged(waiting[0].stage))
                self.executor.run([one.job() for one in waiting], self.models, self.terminal, made)
        return [one.stage for one in planned]

    def _prompt_counts(self, iteration: int) -> list[int]:
        """How many prompts each shard of the iteration's stages is about."""
        return [_count_rows(path) for path in self.prompts(iteration).shards()]

    def _weights(self, policy: PolicyState) -> Path | None:
        """The folder of a policy as a worker is told it: the base is for each to find."""
        return None if policy.folder == self.base.folder else policy.folder.resolve()

    def _measures(
        self, stage: StageFolder, shards: Sequence[dict[str, Any]], previous: int
    ) -> dict[str, Any]:
        """Win rates against the base and the previous policy, and the KL to the base.

        Win rates are the held-out judge's where there is one, and the oracle's are then given beside them. Without
        either there are none.
        """
        others = {"base": HELD_OUT, "previous": previous}
        judges = [True] if self.recipe.evaluation.judge is not None else []
        judges += [False] if self.recipe.oracle is not None else []
        rates: dict[tuple[bool, str], list[float]] = {(by, name): [] for by in judges for name in others}
        divergences: list[float] = []
        score_by_base = self.models.scorer(None)
        total = sum(shard["prompts"] for shard in shards)
        of_each = self.recipe.evaluation.responses
        with self.terminal.bar(f"{stage.title}, win rates", total, "prompts") as advance:
            for shard in shards:
                rows = read_rows(stage.folder / shard["name"])
                opposite = {
                    name: read_rows(self.run.iteration(number) / "evaluation" / shard["name"])
                    for name, number in others.items()
                }
                divergences += [
                    response["log_prob"] - value
                    for row, values in zip(rows, score_by_base(rows), strict=True)
                    for response, value in zip(row["responses"], values, strict=True)
                ]
                for start in range(0, len(rows), ORACLE_PROMPTS):
                    part = rows[start : start + ORACLE_PROMPTS]
                    for name, all_theirs in opposite.items():
                        if name == "previous" and previous == HELD_OUT:
                            continue  # the previous policy is the base
                        theirs = all_theirs[start : start + ORACLE_PROMPTS]
                        for by_judge in judges:
                            rates[by_judge, name] += head_to_head.win_rates_against(
                                lambda _, texts, part=part, by=by_judge: self.models.compare(  # type: ignore[misc]
                                    part, texts, head_to_head.across(len(part), of_each, of_each), by_judge=by
                                ),
                                self.models.prompt_texts(part),
                                response_texts(part),
                                response_texts(theirs),
                            ).tolist()
                    advance(len(part))
        self.models.release()
        if previous == HELD_OUT:
            rates |= {(by, "previous"): rates[by, "base"] for by in judges}
        of = self.recipe.evaluation
        seed = randomness.seed("bootstrap", self.recipe.seed, stage.iteration)
        found: dict[bool, dict[str, Any]] = {by: {} for by in judges}
        for (by_judge, name), values in rates.items():
            found[by_judge][f"win_rate_vs_{name}"] = head_to_head.interval(
                np.array(values), confidence=of.confidence, resamples=of.resamples, seed=seed
            )
        intervals = found[judges[0]] if judges else {}
        intervals |= {"by_oracle": found[False]} if len(judges) > 1 else {}
        of_prompts = {"win_rates_vs_base": rates[judges[0], "base"]} if judges else {}
        return {
            **intervals,
            "kl_to_base": float(np.mean(divergences)),
            "held_out_prompts": total,
            **of_prompts,
        }

    @contextlib.contextmanager
    def _logged(self, stage: StageFolder) -> Iterator[None]:
        """Logs the seconds of a stage."""
        begin, finished = time.perf_counter(), False
        try:
            yield
            finished = True
        finally:
            seconds = time.perf_counter() - begin
            self.run.log(stage.iteration, {"stage": stage.name, "seconds": seconds, "finished": finished})


@dataclass(frozen=True)
class _Planned:
    """A stage that is made shard by shard: its job, and what is said of it when all are there."""

    stage: StageFolder
    job: Callable[[], ShardJob]
    publish: Callable[[list[dict[str, Any]]], None]

    @classmethod
    def of(
        cls,
        stage: StageFolder,
        unit: str,
        kind: Kind,
        work: Work,
        sources: Sequence[Sequence[Path]],
        units: Sequence[int],
        publish: Callable[[list[dict[str, Any]]], None],
    ) -> "_Planned":
        return cls(
            stage, lambda: ShardJob(stage.title, unit, kind, work, stage.plan_shards(sources), units), publish
        )


def _with_prompts(folder: Path, shards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**shard, "prompts": _count_rows(folder / shard["name"])} for shard in shards]


def _count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _response_counts(folder: Path, shards: Sequence[dict[str, Any]], end_of_turn: int) -> dict[str, Any]:
    """What the responses of a stage are like: lengths, ends and repetition."""

    def responses() -> Iterator[dict[str, Any]]:
        for shard in shards:
            for row in read_rows(folder / shard["name"]):
                yield from row["responses"]

    count = tokens = cut = other_end = 0
    repeated = 0.0
    for response in responses():
        ids = response["token_ids"]
        count += 1
        tokens += len(ids)
        cut += response["finish_reason"] == "length"
        other_end += response["finish_reason"] == "stop" and ids[-1] != end_of_turn
        repeated += head_to_head.repetition(ids)
    return {
        "responses_drawn": count,
        "response_tokens": tokens / count,
        "truncated_share": cut / count,
        "missing_end_of_turn": other_end,
        "repetition": repeated / count,
    }


def _source_identity(source: PromptSource) -> dict[str, Any]:
    """What a source's prompts depend on: a file's content, or a hub data set's name and revision."""
    path = prompt_sources.local_file(source)
    values = source.model_dump(
        exclude={"rows"} | ({"demonstration"} if source.demonstration is None else set())
    )
    if path is not None:
        return {**values, "source": file_digest(path)}
    files = sorted(file for file in Path(source.source).rglob("*") if file.is_file())
    return {**values, "files": [[file.name, file_digest(file)] for file in files]} if files else values
