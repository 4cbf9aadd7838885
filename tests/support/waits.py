"""What a GPU would be waited for, found without one."""

from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Waits(TorchDispatchMode):
    """Notes the operations that a GPU would have to come to the end of: their result's value or size is read back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._here = patch("numpy.flatnonzero", self._flatnonzero)

    def __enter__(self):
        self._here.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._here.stop()
        return super().__exit__(*error)

    def _flatnonzero(self, values, flatnonzero=np.flatnonzero):
        """What is asked of NumPy here would be asked of a GPU's tensor itself."""
        self.found.append("aten::nonzero")
        return flatnonzero(values)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        by_bools = name.startswith("aten::index") and any(
            torch.is_tensor(index) and index.dtype == torch.bool for index in tree_leaves(args[1:2])
        )
        if by_bools or name in ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
