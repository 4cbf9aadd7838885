"""`python -m cmgems`: the command `cmgems`."""

from cmgems.cli import main

main()
