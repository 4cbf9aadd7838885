"""What a GPU would be waited for, found without one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Waits(TorchDispatchMode):
    """Notes the operations that a GPU would have to come to the end of: their result's value or size is read back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        by_bools = name.startswith("aten::index") and any(
            torch.is_tensor(index) and index.dtype == torch.bool for index in tree_leaves(args[1:2])
        )
        if by_bools or name in ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
