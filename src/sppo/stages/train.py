"""The train stage: pi_{t+1} = argmin E (log pi/pi_t - eta (P^ - 1/2))^2, starting from pi_t."""

from collections.abc import Mapping, Sequence
from typing import Any

from sppo import randomness
from sppo.rundir import storage
from sppo.rundir.folder import RunError, StageFolder, describe, publish_folder
from sppo.stages.run import PolicyState, Run
from sppo.stages.select import Select
from sppo.stages.stage import Stage
from sppo.training import TrainingJob


class Train(Stage):
    """pi_{t+1}.

    Args:
        run: the run.
        iteration: t.
        select: what it is trained on; names pi_t and the reference policies as well.
    """

    name = "train"
    folder_name = "policy"

    def __init__(self, run: Run, iteration: int, select: Select) -> None:
        super().__init__(run, iteration)
        self.select = select

    @property
    def policy(self) -> PolicyState:
        """pi_{t+1}, as what is computed with it depends on it."""
        return PolicyState(self.files.folder, self.fingerprint)

    def settings(self) -> Mapping[str, Any]:
        """The algorithm and the optimiser."""
        recipe = self.run.recipe
        return {
            "algorithm": recipe.algorithm.model_dump(),
            "training": recipe.training.result_settings(),
            "policy": recipe.policy.model_dump(include={"dtype", "attn_implementation", "quantization"}),
            "seed": recipe.seed,
        }

    def reads(self) -> Sequence[str]:
        """What is selected, which depends on pi_t and on all that stands in the loss."""
        return (self.select.fingerprint,)

    def make(self) -> StageFolder:
        """Train, from the latest checkpoint where there is one, and publish the policy's folder."""
        if not self.is_done():
            with self.timed():
                self._train()
        return self.files

    def _train(self) -> None:
        from sppo.training.checkpoints import resumed

        run, home = self.run, self.run.folder.iteration(self.iteration)
        work, output = home / ".training", home / ".policy"
        storage.remove(output)
        work.mkdir(exist_ok=True)
        job = self._job(str(work), str(output))
        self._check_learning_rates(job)
        storage.fetch(work)
        job = resumed(job, run.terminal.say)
        run.folder.forget_metrics(self.iteration, self.name, after=job.begun)
        run.models.limit_threads()
        with run.terminal.bar(self.files.title, job.steps.kept, "steps") as advance:
            advance(job.begun)
            run.executor.train(job, advance, run.terminal.say)
        publish_folder(output, self.files.folder)
        storage.remove(work)
        files = [describe(path) for path in sorted(self.files.folder.iterdir()) if path.is_file()]
        self.files.publish([], files=files, steps=job.steps.kept)

    def _job(self, work: str, output: str) -> TrainingJob:
        run, recipe, select = self.run, self.run.recipe, self.select
        return TrainingJob(
            policy=str(select.policy.folder),
            opponent=select.policy.fingerprint,
            reference_policies=[policy.fingerprint for policy in select.reference_policies],
            model=recipe.policy.model,
            revision=recipe.policy.revision,
            shards=[str(path) for path in select.files.shards()],
            output=output,
            work=work,
            metrics=str(run.folder.metrics(self.iteration)),
            prompts=select.record()["trained_prompts"],
            seed=randomness.seed("train", recipe.seed, self.iteration),
            dtype=recipe.policy.dtype,
            attn_implementation=recipe.policy.attn_implementation,
            trust_remote_code=recipe.policy.trust_remote_code,
            quantization=recipe.policy.quantization,
            chat_template=recipe.policy.chat_template,
            algorithm=recipe.algorithm,
            settings=recipe.training.on_devices(run.executor.training_devices()),
            report_to=recipe.report_to,
            run_name=f"{run.folder.path.name}-iter-{self.iteration}",
            fingerprint=self.fingerprint,
        )

    def _check_learning_rates(self, job: TrainingJob) -> None:
        from sppo.training.schedule import learning_rate

        training = self.run.recipe.training
        rates = (
            learning_rate(step, job.steps, training.schedule, training.learning_rate)
            for step in range(job.steps.kept)
        )
        if not any(rates):
            raise RunError(
                f"{self.files.title}: all of its {job.steps.kept} steps have a learning rate of 0, since the schedule"
                " is still at the start of its warm-up; lower training.batch_prompts or training.warmup_ratio"
            )
