"""Hugging Face datasets by their names: a folder, or `owner/name` on the hub."""

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from cmgems.errors import UserError


def is_hub_name(source: str) -> bool:
    """Return whether `source`, which is not here, may be `owner/name` on the hub rather than a mistyped path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None and not Path(source).parent.exists()


def is_saved_dataset_dict(folder: Path) -> bool:
    """Return whether `folder` was written by `save_to_disk` of a dataset with splits (`datasets.DatasetDict`)."""
    return (folder / "dataset_dict.json").is_file()


def load_dataset(source: str, configuration: str | None = None) -> Any:
    """Load a dataset: written by `save_to_disk`, a folder of data files, or one on the hub.

    Returns
    -------
    datasets.Dataset or datasets.DatasetDict

    Raises
    ------
    UserError
        If there is no such dataset, or it cannot be read.
    """
    folder = Path(source)
    is_saved = is_saved_dataset_dict(folder) or (folder / "state.json").is_file()
    try:
        if is_saved:
            return datasets.load_from_disk(source)
        return datasets.load_dataset(source, configuration) if configuration else datasets.load_dataset(source)
    except (OSError, ValueError, LookupError, DatasetsError, pa.ArrowException) as error:
        # LookupError: the library saves a dataset without rows, but does not read it back.
        if folder.is_dir():
            what = f"{source}: this folder is not"
        elif configuration:
            what = f"{source} ({configuration}): not"
        else:
            what = f"{source}: there is no such file or folder, and it is not"
        raise UserError(f"{what} a Hugging Face dataset that can be read ({error})") from error
