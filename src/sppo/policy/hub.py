"""The requests to the Hugging Face hub beside downloads: the size of a model, and the upload of an exported policy."""

import re
from pathlib import Path

from sppo.policy.load import PolicyError, check_place
from sppo.rundir.folder import RunError

WRITERS = ("admin", "write", "contributor")


def parameters(model: str, *, endpoint: str | None = None) -> float | None:
    """The number of parameters of a model by its page on the hub; None if the hub does not answer, or does not say.

    Args:
        model: its name on the hub.
        endpoint: the address of a hub; None: that of huggingface_hub.

    Raises:
        PolicyError: the text cannot be the name of a model, or the hub has none of that name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    check_place(model)
    try:
        stored = HfApi(endpoint=endpoint).model_info(model, timeout=10).safetensors
    except RepositoryNotFoundError as error:
        raise PolicyError(
            f"policy.model: {model!r} is neither a folder here nor a model on the hub that you may see; for a private one, run"
            " `hf auth login`"
        ) from error
    except Exception:  # its own, its HTTP library's and the system's, of no common class
        return None
    return None if stored is None else float(stored.total)


def check_owner(repository: str) -> None:
    """Refuse a repository that the user does not own, before anything is written.

    Args:
        repository: OWNER/NAME, where the owner is the user or an organisation that the user can write to.

    Raises:
        RunError: the repository belongs to someone else, the user is not logged in, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"--push-to-hub {repository}: write it as OWNER/NAME")
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise RunError(
            "--push-to-hub: you are not logged in; run `hf auth login`, or set HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        raise RunError("--push-to-hub: HF_HUB_OFFLINE is set; unset it") from error
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push-to-hub: the hub did not identify you: {error}") from error
    own = [user["name"]]
    own += [group["name"] for group in user.get("orgs", []) if group.get("roleInOrg") in WRITERS]
    owner = repository.partition("/")[0]
    if owner not in own:
        raise RunError(f"--push-to-hub {repository}: you do not own {owner}; use one of {', '.join(own)}")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder as a model.

    Args:
        folder: the folder of the policy.
        repository: OWNER/NAME, as for :func:`check_owner`.
        public: make the repository public rather than private.

    Returns:
        The repository's address.

    Raises:
        RunError: the repository has files already, or the upload fails; the folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_owner(repository)
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=not public, exist_ok=True)
        if set(hub.list_repo_files(repository)) - {".gitattributes"}:
            raise RunError(
                f"--push-to-hub {repository}: the repository has files already; choose another name. {folder} is kept"
            )
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by sppo")
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push-to-hub {repository}: the upload failed, {folder} is kept: {error}") from error
    return str(address)
