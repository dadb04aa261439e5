"""Tensors of a checkpoint that are taken only where they are what is expected."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unfused_fast.errors import UserError


def misfit(parts: str) -> UserError:
    """What is said of a checkpoint of another network or run."""
    return UserError(f"the checkpoint does not fit this config: {parts}; use the config of the run that wrote it")


def expected(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor by its name; None in `shape` stands for any size. Raises UserError: missing, or another."""
    if name not in tensors:
        raise misfit(f"missing {name}")
    found = tensors[name]
    same = found.ndim == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(found.shape, shape, strict=True)
    )
    if found.dtype != dtype or not same:
        want = tuple("any" if size is None else size for size in shape)
        raise misfit(f"{name} is {tuple(found.shape)} {found.dtype}, not {want} {dtype}")
    return found
