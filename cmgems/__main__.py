"""The command `cmgems`."""

from cmgems.runtime.process import exit_on_error
from cmgems.runtime.signals import SAME_COMMAND, stopping_on_signals


def main() -> None:
    """Run `cmgems` with the process's arguments; exit code 2 for invalid input, 75 where a signal stops it."""
    with stopping_on_signals(SAME_COMMAND), exit_on_error():
        from cmgems.cli import main as run  # here: it takes a second to import, in which a signal can arrive

        run()


if __name__ == "__main__":
    main()
