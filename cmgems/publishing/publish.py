"""Publishes a model: its files, its card and its recipe, into a new folder or in one commit on the Hugging Face hub."""

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # HTTPError is httpx's
from huggingface_hub.utils.tqdm import disable_progress_bars

import cmgems
from cmgems.errors import CmgemsError, UnavailableError, UserError
from cmgems.publishing.card import Publication, write_card
from cmgems.publishing.description import Description, describe
from cmgems.publishing.settings import PublishConfig
from cmgems.runtime.files import atomic_folder
from cmgems.runtime.passwords import hide_password

HUB = "hub:"
CARD = "README.md"
RECIPE = "recipe.yaml"

_RECIPE_HEAD = """\
# The settings of the run of this model. With the inputs of corpus.prepare in the current folder, this trains it:
#   accelerate launch cmgems/pretrain.py --config recipe.yaml
"""

_REMEDIES = {
    401: "the token is not valid; set HF_TOKEN to one that may write",
    403: "the token may not write there; set HF_TOKEN to one that may",
    404: "there is no such place, or the token may not see it",
}

Files = Mapping[str, Path | bytes]
"""Files of a published model by name: where they are, or what is in them."""


def publish(config: PublishConfig) -> str:
    """Publish a model, and return where it is. Nothing goes over the network unless `to` begins with `hub:`.

    Raises
    ------
    UserError
        If there is no such model, the target is in use, or the hub refuses.
    UnavailableError
        If the hub does not answer.
    """
    is_hub = config.to.startswith(HUB)
    name = config.to.removeprefix(HUB) if is_hub else Path(config.to).name
    if is_hub:
        _check_hub(name)
    else:
        if config.private:
            raise UserError(f"private would change nothing: {config.to} is a folder")
        _check_folder(Path(config.to))
    model = describe(config.run, config.step)
    files = published_files(model, Publication(name, config.license, config.kg_co2))
    if is_hub:
        return _upload(files, name, config.private, model)
    write_files(files, Path(config.to))
    return config.to


def published_files(model: Description, publication: Publication) -> dict[str, Path | bytes]:
    """Return all files of a published model: those that the run has exported, the card, and the recipe."""
    exported = {path.name: path for path in sorted(model.folder.iterdir()) if path.is_file()}
    recipe = model.config.model_dump(mode="json", exclude_unset=True)
    text = _RECIPE_HEAD + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return {**exported, CARD: write_card(model, publication).encode(), RECIPE: text.encode()}


def write_files(files: Files, folder: Path) -> None:
    """Write files into a new folder, which is there completely or not at all.

    Raises
    ------
    UserError
        If it exists and is not empty, or cannot be written.
    """
    try:
        with atomic_folder(folder) as partial:
            for name, content in files.items():
                if isinstance(content, bytes):
                    (partial / name).write_bytes(content)
                else:
                    shutil.copyfile(content, partial / name)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            _check_folder(folder)
        raise UserError(f"{folder}: the model cannot be written ({error})") from None


def _check_folder(folder: Path) -> None:
    """Raise UserError if a folder cannot be a new one."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists already and is not empty; name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name another folder")


def _check_hub(name: str) -> None:
    """Raise UserError if a name is none of the hub's, or there is no token to write there with."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError("to: a model on the hub is named hub:OWNER/NAME")
    if get_token() is None:
        raise UserError("there is no token for the hub: set HF_TOKEN, or log in with `hf auth login`")


def _upload(files: Files, name: str, private: bool, model: Description) -> str:
    """Put the files on the hub in one commit, after saying what and where to; return its address."""
    api = HfApi(library_name="cmgems", library_version=cmgems.__version__)
    place = f"{hide_password(api.endpoint)}/{name}"
    print(f"uploading to {place}{' (private)' if private else ''}:", flush=True)
    for file, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"  {file}, {size:,} bytes", flush=True)
    disable_progress_bars()
    with _hub_errors(place):
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise UserError(
                f"{place} is there already, and public: nothing was uploaded; make it private, or name another"
            )
        additions = [CommitOperationAdd(file, content) for file, content in files.items()]
        message = f"{model.config.name} after {model.step:,} steps, by cmgems {cmgems.__version__}"
        api.create_commit(name, additions, commit_message=message)
    return place


@contextmanager
def _hub_errors(place: str) -> Iterator[None]:
    """Turn whatever goes wrong with the hub into one message."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: around those of uploads
        raise _hub_error(place, error) from error


def _hub_error(place: str, error: Exception) -> CmgemsError:
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        why = _REMEDIES.get(status) or cause.server_message or cause.response.reason_phrase
        kind = UserError if status < 500 else UnavailableError
        return kind(f"{place}: the hub refuses it ({status}): {why}")
    why = hide_password(" ".join(str(cause).split())) or type(cause).__name__
    if isinstance(cause, ValueError):
        return UserError(f"{place}: the hub does not take it: {why}")
    return UnavailableError(f"{place}: the hub does not answer: {why}")
