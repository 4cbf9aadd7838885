"""All results of a study that there are."""

from cmgems.errors import UserError
from cmgems.study.records import Record, read_record
from cmgems.study.settings import Study


def read_records(study: Study) -> list[Record]:
    """Read the results of a study, in the order of its arms and seeds.

    Raises
    ------
    UserError
        If there are none, or one cannot be read.
    """
    paths = [study.results / f"{arm.name}-{seed}.json" for arm in study.arms for seed in range(1, arm.seeds + 1)]
    found = [record for path in paths if (record := read_record(path)) is not None]
    if not found:
        raise UserError(f"{study.results}: no results of the study; `cmgems study {study.path}` computes them")
    return found
