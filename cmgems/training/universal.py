"""DeepSpeed's conversion into its universal format, which reads plain weights only where the environment says so:

python -m cmgems.training.universal --input_folder CHECKPOINT --output_folder FOLDER
"""

import torch
from deepspeed.checkpoint.ds_to_universal import main, parse_arguments

from cmgems.training.plain_weights import deepspeed_classes

# For the processes that it starts, too: they import this module, or are copies of its process.
torch.serialization.add_safe_globals(deepspeed_classes())

if __name__ == "__main__":
    main(parse_arguments())
