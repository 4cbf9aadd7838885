"""Hugging Face datasets by their names: a folder, or `owner/name` on the hub."""

import re
from collections.abc import Sequence
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


_UNREADABLE = (
    *(OSError, ValueError, DatasetsError, pa.ArrowException),
    LookupError,  # the library saves a dataset without rows, but does not read it back
    *(TypeError, AttributeError, StopIteration),  # it does not check the JSON files of a saved dataset
    RuntimeError,  # a script of Python, which it does not run
)


def load_dataset(source: str, configuration: str | None = None, text_columns: Sequence[str] = ()) -> Any:
    """Load a dataset: written by `save_to_disk`, a folder of data files, or one on the hub.

    Parameters
    ----------
    source
        The folder, or `owner/name`.
    configuration
        Name of the configuration, for a dataset on the hub that has several.
    text_columns
        Columns that are text in CSV files, whatever is in them: `01` and `1` are different, and `NA` is not empty.

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
        names = (source, configuration) if configuration else (source,)
        return datasets.load_dataset(*names, **_csv_options(source, text_columns))
    except _UNREADABLE as error:
        if folder.is_dir():
            what = f"{source}: this folder is not"
        elif configuration:
            what = f"{source} ({configuration}): not"
        else:
            what = f"{source}: there is no such file or folder, and it is not"
        raise UserError(f"{what} a Hugging Face dataset that can be read ({error or type(error).__name__})") from error


def _csv_options(source: str, text_columns: Sequence[str]) -> dict[str, Any]:
    """Return the options that keep columns of a folder of CSV files text."""
    if not text_columns or not Path(source).is_dir():
        return {}
    config = datasets.load_dataset_builder(source).config
    if not hasattr(config, "keep_default_na"):
        return {}
    return {"converters": dict.fromkeys(text_columns, str), "keep_default_na": False}
