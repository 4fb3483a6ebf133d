"""Upload an exported folder to the Hugging Face hub; the only code in leoclr that sends data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leoclr.datasets.errors import RunError, SettingsError
from leoclr.datasets.wording import in_a_line


def require_hub() -> None:
    """Raise SettingsError where huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise SettingsError("--push needs huggingface_hub: pip install 'leoclr-cli[hf]'") from None


def push_folder(folder: Path, files: Sequence[Path], repository: str, public: bool) -> str:
    """Upload `files` of `folder` as one commit; a repository that does not exist is made.

    huggingface_hub finds the hub (`HF_ENDPOINT`) and the user's token as its own commands do.

    Args:
        repository: OWNER/NAME.
        public: Whether a new repository is; one that exists stays as it is.

    Returns:
        The address of the commit.

    Raises:
        RunError: The hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="leoclr")
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        names = [file.name for file in files]
        message = "Upload of leoclr export"
        commit = api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, allow_patterns=names, commit_message=message
        )
        return str(commit.commit_url)
    except Exception as error:  # its versions bring HTTP clients of their own, whose errors have no root in common
        raise RunError(f"{folder} is written, but not uploaded to {repository}: {in_a_line(error)}") from error
