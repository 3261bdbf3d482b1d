"""The train stage: pi_{t+1} = argmin E (log pi/pi_t - eta (P^ - 1/2))^2, starting from pi_t."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo import randomness
from sppo.rundir import storage
from sppo.rundir.folder import RunError, StageFolder, describe, publish_folder
from sppo.stages.run import PolicyState, Run
from sppo.stages.select import Select
from sppo.stages.stage import Stage
from sppo.training import TrainingJob


class Train(Stage):
    """The training of pi_{t+1}.

    Args:
        run: the run.
        iteration: t.
        select: the stage that selects what is trained on, and that names pi_t and the reference policies.
        initial: the policy from whose weights the training starts.
    """

    name = "train"
    folder_name = "policy"

    def __init__(self, run: Run, iteration: int, select: Select, initial: PolicyState) -> None:
        super().__init__(run, iteration)
        self.select = select
        self.initial = initial

    @property
    def policy(self) -> PolicyState:
        """The trained policy, pi_{t+1}, for the stages that depend on it."""
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
        """The selection, which depends on pi_t and on every policy in the loss, and the policy that training starts from."""
        further = () if self.initial == self.select.policy else (self.initial.fingerprint,)
        return (self.select.fingerprint, *further)

    def make(self) -> StageFolder:
        """Train, from the latest checkpoint if there is one, and publish the policy's folder."""
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
        if self.initial.folder != run.base.folder:
            storage.fetch(
                self.initial.folder
            )  # an earlier policy than pi_t may not have been read on this machine
        job = resumed(job, run.terminal.say)
        run.folder.forget_metrics(self.iteration, self.name, after=job.begun)
        run.models.limit_threads()
        with run.terminal.bar(self.files.title, job.steps.kept, "steps") as advance:
            advance(job.begun)
            with _disk_errors(home):
                run.executor.train(job, advance, run.terminal.say)
        publish_folder(output, self.files.folder)
        storage.remove(work)
        files = [describe(path) for path in sorted(self.files.folder.iterdir()) if path.is_file()]
        self.files.publish([], files=files, steps=job.steps.kept)

    def _job(self, work: str, output: str) -> TrainingJob:
        run, recipe, select = self.run, self.run.recipe, self.select
        return TrainingJob(
            policy=str(self.initial.folder),
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


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, as safetensors, torch or a training process reports it, into an OSError that names the folder.

    safetensors raises a SafetensorError and torch a RuntimeError whose text holds the system's error, if any.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = next((number for number in _DISK_ERRORS if _mentions(str(error), number)), None)
        if number is None and re.search(r"PytorchStreamWriter failed|inline_container\.cc", str(error)):
            number = errno.ENOSPC  # torch's writer of archives does not say why it could not write
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def _mentions(text: str, number: int) -> bool:
    return os.strerror(number) in text or re.search(rf"\bos error {number}\b", text) is not None
