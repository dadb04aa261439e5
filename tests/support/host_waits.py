"""Operators that a device gets, and those at which a host waits for it: values that it reads, and shapes that depend on
values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}


class Recorded(TorchDispatchMode):
    """Names of the operators that run inside, how many of them are more than another view of a tensor, and how many
    make a host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names, self.waits, self.launches = set[str](), 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        picked = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        # which rows a mask picks has to be known
        masks = any(torch.is_tensor(index) and index.dtype == torch.bool for index in picked)
        self.names.add(name)
        self.launches += not function.is_view
        self.waits += masks or name in WAITS
        return function(*args, **(kwargs or {}))
