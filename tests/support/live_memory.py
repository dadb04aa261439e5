"""Memory of the tensors that are alive at one time."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Most bytes of the tensors that operators inside made, and that were alive at one time; without `given`."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.peak, self._now, self._sizes = 0, 0, {tensor.untyped_storage()._cdata: 0 for tensor in given}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(made, Tensor) or (storage := made.untyped_storage())._cdata in self._sizes:
                continue
            self._sizes[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, storage: int) -> None:
        self._now -= self._sizes.pop(storage)
