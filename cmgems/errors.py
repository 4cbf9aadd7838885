"""Exceptions that end a command with one message, each with its exit code.

    CmgemsError
    ├── UserError           2   invalid input or setting: the user can correct it
    ├── DivergedError       2   the model's numbers are no longer finite: another attempt diverges again
    ├── IncompleteError     1   some parts failed, the others are done
    ├── DisagreementError   1   processes of a run are not in the same state
    └── UnavailableError   69   a server or storage does not answer: retry later
        └── InUseError     69   another process has the run's folder
    Interrupted            75   a signal asked the run to stop; not an error

Batch scripts start a run again unless its exit code is 0 or 2 (`slurm/pretrain.sh`).
"""


class CmgemsError(Exception):
    """Base of the errors that a command reports in one message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, every_process: bool = False) -> None:
        """Make an error.

        Parameters
        ----------
        message
            What the user reads. It names the setting, file or row, and the remedy.
        every_process
            Whether each process that raises it reports it; otherwise one per machine does.
        """
        super().__init__(message)
        self.every_process = every_process


class UserError(CmgemsError):
    """An input or a setting is invalid."""

    exit_code = 2


class DivergedError(CmgemsError):
    """Losses, perplexities or outputs of a model are no longer finite."""

    exit_code = 2


class IncompleteError(CmgemsError):
    """Some parts of a command failed; the others are done, and are not computed again."""


class DisagreementError(CmgemsError):
    """The processes of a run are not in the same state. Every process reports it."""


class UnavailableError(CmgemsError):
    """A server or storage that is needed does not answer; the same command may succeed later."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class InUseError(UnavailableError):
    """Another process has the run's folder; it may be about to end."""


class Interrupted(BaseException):  # not an error: no `except Exception` is to take it
    """A signal asked the run to stop. The message says where its state is."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: retry later
