"""cmgems/pretrain.py on one process, with the checkpoint that it resumes from crafted: one file of each name after the
other becomes a pickle that makes a folder when it is read. It prints which were refused; then the run goes on with the
checkpoint as it was.

    accelerate launch ... tests/training/crafted.py --config RECIPE ... --resume auto
"""

import sys

from cmgems.config.command_line import load_config
from cmgems.errors import UserError
from cmgems.pretrain import pretrain
from cmgems.runtime import process
from cmgems.runtime.logging import configure_logging
from cmgems.training import resume
from tests.inputs.models import craft

load = resume.load_weights


def load_crafted(accelerator, model, optimizer, folder):
    """Load a checkpoint with one file of each name crafted, and then as it is."""
    for file in {file.name: file for file in sorted(folder.rglob("*.pt"), reverse=True)}.values():
        with craft(file):
            try:
                load(accelerator, model, optimizer, folder)
            except UserError as error:
                print(f"refused {file.name}: {error}")
    load(accelerator, model, optimizer, folder)


if __name__ == "__main__":
    configure_logging()
    resume.load_weights = load_crafted
    with process.exit_on_error():
        pretrain(load_config(sys.argv[1:]))
