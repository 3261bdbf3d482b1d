"""Find the policy that a path refers to."""

from pathlib import Path

from sppo.policy import adapter as adapters
from sppo.policy.chat_format import model_path
from sppo.rundir.folder import RunError
from sppo.rundir.reader import last_policy


def policy_of(path: Path) -> Path:
    """The folder of a policy, given itself or a run folder, whose last accepted policy is meant.

    Raises:
        RunError: the path is neither a policy nor a run with a finished iteration.
    """
    accepted = last_policy(path)
    if accepted is not None:
        return accepted
    folder = Path(model_path(str(path)))
    if (folder / "config.json").is_file() or adapters.is_adapter(folder):
        return folder
    raise RunError(f"{path} is neither a run with a finished iteration nor a policy's folder")
