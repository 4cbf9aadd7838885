"""Messages of the program: information on standard output, warnings on standard error.

A module logs with ``logging.getLogger(__name__)``, also where cmgems is used as a library; a command shows what its
modules log from `configure_logging` on. What a command was asked for, such as a plan or a path, it prints.
"""

import logging
import sys

from tqdm import tqdm

from cmgems.runtime.passwords import hide_password
from cmgems.runtime.process import local_rank


def configure_logging() -> None:
    """Show what cmgems logs: warnings of every process, information from the first process of each machine."""
    logger = logging.getLogger("cmgems")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_Console()]
    # DeepSpeed says on every rank of a machine without GPUs that it has found none.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


class _Console(logging.Handler):
    """Writes above a progress bar, if there is one, on whatever the standard streams are at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        if not is_warning and local_rank() != 0:
            return
        try:
            text = hide_password(record.getMessage())
            stream = sys.stderr if is_warning else sys.stdout
            tqdm.write(f"{record.levelname.lower()}: {text}" if is_warning else text, file=stream)
            stream.flush()
        except Exception:  # noqa: BLE001  # as every handler of logging: a lost message ends no training
            self.handleError(record)
