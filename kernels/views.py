"""Views of a batch: log-mixup-exp with a crop from the mixup memory, then random resize crop.

B clips in a batch, F mel bins, T frames, M crops in the mixup memory.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton
    import triton.language as tl

Maybe = Tensor | None
CUBIC_A = -0.75
"""Keys' coefficient, as in torch.nn.functional.interpolate(mode="bicubic")."""
BLOCK = 32
"""Bins and frames of the tile of a view that a program makes. Ours: a warp writes 32 neighbouring frames, one line of
128 bytes, and what a tile reads of a crop stays in the L1 cache."""
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}
"""Of both kernels. Ours: with 8 warps 64 registers a thread on sm_90, with 4 warps 158. Multiply-adds that the compiler
fuses would round tap positions differently from F.interpolate, by up to 3e-5 of a frame at frame 1,000."""


def cubic_kernel(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at non-negative distances; 0 from 2 on. Source: Keys 1981, eq. 4 with a =
    -0.75.
    """
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance.square() + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def resize_weights(offset: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """(B,) offset and length of crops -> (B, size_out, size_in) rows of bicubic weights, align_corners.

    Row o resamples the crop [offset, offset + length) of an axis of size_in at output position o. Taps are clamped to
    the crop, as F.interpolate clamps to its input; positions of the crop outside [0, size_in) are the zero canvas and
    have weight 0.
    """
    last = (length - 1).to(torch.float32)[:, None]
    # scale first: rounded as F.interpolate rounds it; by a tensor, as CUDA multiplies by the reciprocal of a number
    scale = last / torch.full_like(last, max(size_out - 1, 1))
    source = scale * torch.arange(size_out, device=offset.device, dtype=torch.float32)
    base = source.floor()
    weights = torch.zeros(offset.shape[0], size_out, size_in, device=offset.device)
    taps = torch.arange(-1, 3, device=offset.device, dtype=torch.float32)[:, None, None]
    index = (base + taps).clamp_(min=0).minimum(last) + offset.to(torch.float32)[:, None]
    values = cubic_kernel((source - base - taps).abs_()) * ((index >= 0) & (index < size_in))
    columns = index.clamp_(0, size_in - 1).long()
    for tap in range(4):  # one element of a row a tap: no two additions meet, so the sum has one order on every device
        weights.scatter_add_(2, columns[tap, ..., None], values[tap, ..., None])
    return weights


def log_mixup_exp(log_mel: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """log((1 - share) exp(log_mel) + share exp(other)), (B, 1, F, T) both, share (B,). Source: BYOL-A section 3;
    authors.
    """
    share = share[:, None, None, None]
    mixed = log_mel.exp().mul_(1 - share).add_(other.exp().mul_(share)).log_()
    return torch.where(share > 0, mixed, log_mel)


def augmented_reference(
    crops: Tensor, memory: Maybe, slots: Maybe, shares: Maybe, frequency: Maybe, time: Maybe
) -> Tensor:
    """(B, 1, F, T) crops -> (B, 1, F, T) float32 views. Two batched matrix products.

    Args:
        crops: float32, bfloat16 or float16.
        memory: (M, 1, F, T) float16 or float32 crops to mix with; None: no mixup.
        slots: (B,) int64, which of them.
        shares: (B,) float32, how much of it; 0: none.
        frequency, time: (B, 2) float32 offset and length of the crop along each axis, as of resize_weights; None: no
            resize crop.
    """
    crops = crops.float()
    if memory is not None:
        assert slots is not None and shares is not None
        crops = log_mixup_exp(crops, memory.index_select(0, slots).float(), shares)
    if frequency is None or time is None:
        return crops
    bins, frames = crops.shape[-2:]
    rows = resize_weights(frequency[:, 0], frequency[:, 1], bins, bins)
    columns = resize_weights(time[:, 0], time[:, 1], frames, frames)
    return (rows @ crops[:, 0] @ columns.transpose(1, 2)).unsqueeze(1)


@functools.cache
def _build_views_kernels() -> tuple[Any, Any]:
    """The two Triton kernels, made at their first use so that importing this file loads no Triton."""
    global _tap, tl, triton  # Triton looks up the names a kernel uses among the globals of its file.
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _tap(place, tap: tl.constexpr, span_ptr, size, A: tl.constexpr):  # type: ignore[no-untyped-def]
        """Tap -1, 0, 1 or 2 of the view's `place`: which of `size` inputs it is, and its weight."""
        offset, last = tl.load(span_ptr), tl.load(span_ptr + 1) - 1
        source = tl.div_rn(last, tl.maximum(size - 1, 1).to(tl.float32)) * place.to(tl.float32)
        base = tl.floor(source)
        index = (tl.minimum(tl.maximum(base + tap, 0.0), last) + offset).to(tl.int32)
        distance = tl.abs(source - base - tap)
        if tap == 0 or tap == 1:
            weight = ((A + 2) * distance - (A + 3)) * distance * distance + 1
        else:
            weight = A * (((distance - 5) * distance + 8) * distance - 4)
        nearest = tl.minimum(tl.maximum(index, 0), size - 1)
        return nearest, tl.where(index == nearest, weight, 0.0)

    @triton.jit  # type: ignore[untyped-decorator]
    def _mixup_kernel(  # type: ignore[no-untyped-def]
        crops_ptr, memory_ptr, slots_ptr, shares_ptr, mixed_ptr, F, T, BLOCK: tl.constexpr
    ):
        """A program mixes a tile of one clip."""
        clip = tl.program_id(0).to(tl.int64)
        bins = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
        frames = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (bins < F) & (frames < T)
        place = clip * F * T + bins * T + frames
        crop = tl.load(crops_ptr + place, mask=inside, other=0.0).to(tl.float32)
        share, slot = tl.load(shares_ptr + clip), tl.load(slots_ptr + clip)
        other = tl.load(memory_ptr + slot * F * T + bins * T + frames, mask=inside, other=0.0).to(tl.float32)
        mixed = tl.log(tl.exp(crop) * (1 - share) + tl.exp(other) * share)
        tl.store(mixed_ptr + place, tl.where(share > 0, mixed, crop), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _resize_kernel(  # type: ignore[no-untyped-def]
        crops_ptr, frequency_ptr, time_ptr, views_ptr, F, T, BLOCK: tl.constexpr, A: tl.constexpr
    ):
        """A program makes a tile of one clip's view: each number from the 4 x 4 of the crop around its place."""
        clip = tl.program_id(0).to(tl.int64)
        bins = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
        frames = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
        crop_ptr = crops_ptr + clip * F * T
        view = tl.zeros((BLOCK, BLOCK), tl.float32)
        for tap_t in tl.static_range(-1, 3):
            column, column_weight = _tap(frames, tap_t, time_ptr + 2 * clip, T, A)
            along = tl.zeros((BLOCK, BLOCK), tl.float32)
            for tap_f in tl.static_range(-1, 3):
                row, row_weight = _tap(bins, tap_f, frequency_ptr + 2 * clip, F, A)
                along = tl.fma(row_weight, tl.load(crop_ptr + row * T + column).to(tl.float32), along)
            view = tl.fma(column_weight, along, view)
        tl.store(views_ptr + clip * F * T + bins * T + frames, view, mask=(bins < F) & (frames < T))

    return _mixup_kernel, _resize_kernel


def augmented_triton(
    crops: Tensor, memory: Maybe, slots: Maybe, shares: Maybe, frequency: Maybe, time: Maybe
) -> Tensor:
    """As `augmented_reference` to 2e-5, in a kernel each for mixup and resizing; on CPU tensors only under Triton's
    interpreter.

    Each number costs mixup 10 bytes, which bound it, and resizing 8 bytes and 214 instructions (as compiled for sm_90;
    its 16 taps come from the L1 cache), which bound it: 23 us for 512 crops of 64 x 96 on an H100, computed, not
    measured. In one kernel mixup would be done again for each tap.
    """
    mixup_kernel, resize_kernel = _build_views_kernels()
    clips, _, bins, frames = crops.shape
    grid = clips, triton.cdiv(bins, BLOCK), triton.cdiv(frames, BLOCK)

    def launched(kernel: Any, *arguments: Tensor | None, **constants: float) -> Tensor:
        made = torch.empty(clips, 1, bins, frames, device=crops.device)
        with torch.cuda.device(crops.get_device()):
            kernel[grid](crops.contiguous(), *arguments, made, bins, frames, BLOCK, **constants, **LAUNCH)
        return made

    if memory is not None and clips:
        crops = launched(mixup_kernel, memory.contiguous(), slots, shares)
    if frequency is not None and time is not None and clips:
        crops = launched(resize_kernel, frequency.contiguous(), time.contiguous(), A=CUBIC_A)
    return crops.float()
