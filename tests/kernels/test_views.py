"""Mixup and random resize crop of a batch against torch.nn.functional.interpolate and numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from unfused_fast.kernels import views


def random_case(clips: int, bins: int, frames: int, seed: int = 0) -> tuple[Any, ...]:
    """Crops, memory, slots, shares (the first 0), and crops of each axis that reach beyond the edges too."""
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randn(clips, 1, bins, frames, generator=generator)
    memory = torch.randn(7, 1, bins, frames, generator=generator).half()
    slots = torch.randint(7, (clips,), generator=generator)
    shares = 0.4 * torch.rand(clips, generator=generator)
    shares[0] = 0

    def span(size: int) -> Tensor:
        length = (size * (0.6 + 0.9 * torch.rand(clips, generator=generator))).floor().clamp(min=1)
        offset = (torch.rand(clips, generator=generator) * size / 2 - size / 4).floor()
        return torch.stack([offset, length], dim=1)

    return crops, memory, slots, shares, span(bins), span(frames)


def expected(
    crops: Tensor, memory: Tensor, slots: Tensor, shares: Tensor, frequency: Tensor, time: Tensor
) -> np.ndarray[Any, Any]:
    """Clip by clip: numpy's mixup in float64, a cut out of a zero canvas, torch's bicubic interpolation."""
    made = []
    bins, frames = crops.shape[-2:]
    for clip, share in enumerate(shares.tolist()):
        own, other = crops[clip, 0].double().numpy(), memory[slots[clip], 0].double().numpy()
        mixed = np.log((1 - share) * np.exp(own) + share * np.exp(other)) if share else own
        margin = 2 * max(bins, frames)
        canvas = pad(torch.from_numpy(mixed).float(), (margin,) * 4)
        (top, height), (left, width) = (axis[clip].int().tolist() for axis in (frequency, time))
        cut = canvas[None, None, margin + top : margin + top + height, margin + left : margin + left + width]
        made.append(interpolate(cut, (bins, frames), mode="bicubic", align_corners=True)[0].numpy())
    return np.stack(made)


@pytest.mark.parametrize(
    ("clips", "bins", "frames"), [(5, 64, 96), (3, 17, 33), (2, 8, 5), (1, 1, 1), (2, 1, 65), (1, 5, 1201)]
)
def test_views_are_interpolated_mixtures(run: Callable[..., Any], clips: int, bins: int, frames: int) -> None:
    case = random_case(clips, bins, frames)
    np.testing.assert_allclose(_made(run, *case), expected(*case), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("resize", [True, False])
def test_narrow_crops_are_mixed_and_resized_in_float32(
    run: Callable[..., Any], dtype: torch.dtype, resize: bool
) -> None:
    crops, *mixup, frequency, time = random_case(3, 17, 33, seed=3)
    crops = crops.to(dtype)
    whole = (torch.tensor([[0.0, size]]).expand(3, 2) for size in (17.0, 33.0))
    made = _made(run, crops, *mixup, *((frequency, time) if resize else (None, None)))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected(crops, *mixup, *((frequency, time) if resize else whole)), atol=2e-5)


def _made(run: Callable[..., Any], *case: Any) -> np.ndarray[Any, Any]:
    return np.stack([view.numpy() for view in run(views, "augmented", *case)])


def test_each_part_alone(run: Callable[..., Any]) -> None:
    crops, memory, slots, shares, frequency, time = random_case(3, 17, 33, seed=1)
    whole, same = (torch.tensor([[0.0, size]]).expand(3, 2) for size in (17.0, 33.0))
    mixed = _made(run, crops, memory, slots, shares, None, None)
    np.testing.assert_allclose(mixed, expected(crops, memory, slots, shares, whole, same), atol=1e-5)
    np.testing.assert_array_equal(mixed[0], crops[0].numpy())
    resized = _made(run, crops, None, None, None, frequency, time)
    np.testing.assert_allclose(resized, expected(crops, memory, slots, 0 * shares, frequency, time), atol=1e-5)


def test_any_strides(run: Callable[..., Any]) -> None:
    crops, *others = random_case(3, 17, 33, seed=2)
    turned = crops.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not turned.is_contiguous()
    np.testing.assert_array_equal(_made(run, turned, *others), _made(run, crops, *others))


@pytest.mark.parametrize("frames", [96, 201, 401, 801, 1201])
def test_crops_of_any_length_fit(
    compile_for: Callable[..., Any], local_bytes: Callable[[Any], int], frames: int
) -> None:
    """F and T are arguments: compiled programs differ only by whether 16 divides them."""
    types = {f"{name}_ptr": "*fp32" for name in ("crops", "shares", "frequency", "time", "mixed", "views")}
    types |= {"memory_ptr": "*fp16", "slots_ptr": "*i64"}
    types |= dict.fromkeys(["F", "T"], "i32")
    for kernel, own in zip(views._build_views_kernels(), ({}, {"A": views.CUBIC_A}), strict=True):
        taken = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        constants = {"BLOCK": views.BLOCK, **own}
        odd = ("T",) if frames % 16 else ()
        compiled = compile_for(kernel, taken, constants, odd, **views.LAUNCH)
        assert compiled.metadata.shared <= 48 * 1024 and local_bytes(compiled) == 0
