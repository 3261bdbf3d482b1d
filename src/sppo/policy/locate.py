"""Find the policy that a path refers to."""

from pathlib import Path

from sppo.policy import adapter as adapters
from sppo.policy.chat_format import model_path
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, is_run, last_policy, run_and_iteration


def policy_of(path: Path) -> Path:
    """The folder of a policy, given itself, a run folder (its last accepted policy), or an iteration's folder in a run.

    Raises:
        RunError: the path is neither a policy nor a run with a finished iteration.
    """
    place = run_and_iteration(path.absolute())
    if place is not None and path.name != "policy" and is_run(place[0]):
        return RunReader(place[0]).named_policy(place[1]).folder
    accepted = last_policy(path)
    if accepted is not None:
        return accepted
    folder = Path(model_path(str(path)))
    if (folder / "config.json").is_file() or adapters.is_adapter(folder):
        return folder
    raise RunError(f"{path} is neither a run with a finished iteration nor a policy's folder")
