"""Giving an exported policy to the Hugging Face hub: only when asked, and only to whom it belongs."""

import re
from pathlib import Path

from sppo.rundir.folder import RunError

WRITERS = ("admin", "write", "contributor")


def check_owner(repository: str) -> None:
    """Refuse a name that is not the user's own, before anything is written.

    Args:
        repository: OWNER/NAME; the owner is the user, or an organisation that the user may write to.

    Raises:
        RunError: it is another's, nobody is logged in, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"--push-to-hub {repository}: give it as OWNER/NAME")
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise RunError("--push-to-hub: nobody is logged in; run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise RunError("--push-to-hub: HF_HUB_OFFLINE is set") from error
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push-to-hub: the hub does not say who you are: {error}") from error
    own = [user["name"]]
    own += [of["name"] for of in user.get("orgs", []) if of.get("roleInOrg") in WRITERS]
    owner = repository.partition("/")[0]
    if owner not in own:
        raise RunError(f"--push-to-hub {repository}: {owner} is not yours; name one of {', '.join(own)}")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder as a model.

    Args:
        folder: of the policy.
        repository: as for :func:`check_owner`.
        public: else only its owner sees it.

    Returns:
        Its address.

    Raises:
        RunError: there are files under that name already, or the upload fails; the folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_owner(repository)
    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=not public, exist_ok=True)
        if set(hub.list_repo_files(repository)) - {".gitattributes"}:
            raise RunError(
                f"--push-to-hub {repository}: there are files already; name another. {folder} is kept"
            )
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by sppo")
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push-to-hub {repository}: the upload failed, {folder} is kept: {error}") from error
    return str(made)
