"""Views of a batch: log-mixup-exp with a remembered crop, then random resize crop, one read and one write a view.

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

CUBIC_A = -0.75
"""Keys' coefficient, as in torch.nn.functional.interpolate(mode="bicubic")."""
BLOCK_OUT = 32
"""Frames of the view that a program makes at once. Ours: with 64 bins and 96 frames all it needs then fits into the
registers and 96 KiB of shared memory of an A100 or H100."""
WARPS = 8


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
    carry no weight.
    """
    last = (length - 1).to(torch.float32)[:, None]
    scale = last / max(size_out - 1, 1)  # scale first: rounded as F.interpolate rounds it
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
    crops: Tensor,
    memory: Tensor | None,
    slots: Tensor | None,
    shares: Tensor | None,
    frequency: Tensor | None,
    time: Tensor | None,
) -> Tensor:
    """(B, 1, F, T) crops -> (B, 1, F, T) float32 views. Two batched matrix products.

    Args:
        memory: (M, 1, F, T) float16 or float32 crops to mix with; None: no mixup.
        slots: (B,) int64, which of them.
        shares: (B,) float32, how much of it; 0: none.
        frequency, time: (B, 2) float32 offset and length of the crop along each axis, as of resize_weights; None: no
            resize crop.
    """
    if memory is not None:
        assert slots is not None and shares is not None
        crops = log_mixup_exp(crops, memory.index_select(0, slots).float(), shares)
    if frequency is None or time is None:
        return crops
    bins, frames = crops.shape[-2:]
    rows = resize_weights(frequency[:, 0], frequency[:, 1], bins, bins)
    columns = resize_weights(time[:, 0], time[:, 1], frames, frames)
    return (rows @ crops[:, 0].float() @ columns.transpose(1, 2)).unsqueeze(1)


@functools.cache
def _build_views_kernel() -> Any:
    """The Triton kernel, made at its first use so that importing this file loads no Triton."""
    global _weights, tl, triton  # Triton looks up the names a kernel uses among the globals of its file.
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _weights(source, base, last, offset, places, A: tl.constexpr):  # type: ignore[no-untyped-def]
        """Bicubic weights of input `places` at output positions that fall on `source` of the crop, by broadcasting."""
        weights = tl.zeros_like(source + places)
        for tap in tl.static_range(-1, 3):
            index = tl.minimum(tl.maximum(base + tap, 0.0), last) + offset
            distance = tl.abs(source - base - tap)
            near = ((A + 2) * distance - (A + 3)) * distance * distance + 1
            far = A * (((distance - 5) * distance + 8) * distance - 4)
            value = tl.where(distance <= 1, near, tl.where(distance < 2, far, 0.0))
            weights += tl.where(places == index, value, 0.0)
        return weights

    @triton.jit  # type: ignore[untyped-decorator]
    def _views_kernel(
        crops_ptr: tl.tensor,
        memory_ptr: tl.tensor,
        slots_ptr: tl.tensor,
        shares_ptr: tl.tensor,
        frequency_ptr: tl.tensor,
        time_ptr: tl.tensor,
        views_ptr: tl.tensor,
        crops_stride_b: int,
        crops_stride_f: int,
        crops_stride_t: int,
        F: tl.constexpr,
        T: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_OUT: tl.constexpr,
        MIXUP: tl.constexpr,
        RESIZE: tl.constexpr,
        A: tl.constexpr,
    ) -> None:
        """A program makes the view of one clip."""
        clip = tl.program_id(0).to(tl.int64)
        bins, frames = tl.arange(0, BLOCK_F)[:, None], tl.arange(0, BLOCK_T)[None, :]
        inside = (bins < F) & (frames < T)
        place = clip * crops_stride_b + bins * crops_stride_f + frames * crops_stride_t
        crop = tl.load(crops_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if MIXUP:
            share = tl.load(shares_ptr + clip)
            slot = tl.load(slots_ptr + clip)
            other = tl.load(memory_ptr + slot * (F * T) + bins * T + frames, mask=inside, other=0.0).to(tl.float32)
            mixed = tl.log(tl.exp(crop) * (1 - share) + tl.exp(other) * share)
            crop = tl.where(share > 0, tl.where(inside, mixed, 0.0), crop)
        if not RESIZE:
            tl.store(views_ptr + clip * (F * T) + bins * T + frames, crop, mask=inside)
        else:
            offset, last = tl.load(frequency_ptr + 2 * clip), tl.load(frequency_ptr + 2 * clip + 1) - 1
            source = tl.div_rn(last, max(F - 1, 1) * 1.0) * bins.to(tl.float32)
            places = tl.arange(0, BLOCK_F)[None, :].to(tl.float32)
            rows = _weights(source, tl.floor(source), last, offset, places, A)
            resized = tl.dot(rows, crop, input_precision="ieee")
            offset, last = tl.load(time_ptr + 2 * clip), tl.load(time_ptr + 2 * clip + 1) - 1
            places = tl.arange(0, BLOCK_T)[:, None].to(tl.float32)
            for first in range(0, T, BLOCK_OUT):
                made = first + tl.arange(0, BLOCK_OUT)[None, :]
                along = tl.div_rn(last, max(T - 1, 1) * 1.0) * made.to(tl.float32)
                columns = _weights(along, tl.floor(along), last, offset, places, A)
                view = tl.dot(resized, columns, input_precision="ieee")
                tl.store(views_ptr + clip * (F * T) + bins * T + made, view, mask=(bins < F) & (made < T))

    return _views_kernel


def augmented_triton(
    crops: Tensor,
    memory: Tensor | None,
    slots: Tensor | None,
    shares: Tensor | None,
    frequency: Tensor | None,
    time: Tensor | None,
) -> Tensor:
    """As `augmented_reference` to 1e-5, in one kernel; on CPU tensors only under Triton's interpreter.

    Raises:
        ValueError: CPU tensors without the interpreter (TRITON_INTERPRET=1).
        ImportError: Triton is not installed.
    """
    kernel = _build_views_kernel()
    if not crops.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"crops are on {crops.device}, but Triton runs on CUDA tensors; call augmented_reference")
    clips, _, bins, frames = crops.shape
    views = torch.empty(clips, 1, bins, frames, device=crops.device)
    if not clips:
        return views
    resize = frequency is not None and time is not None
    with torch.cuda.device(crops.get_device()):
        kernel[(clips,)](
            crops,
            crops if memory is None else memory.contiguous(),
            slots,
            shares,
            frequency.contiguous() if frequency is not None else None,
            time.contiguous() if time is not None else None,
            views,
            crops.stride(0),
            crops.stride(2),
            crops.stride(3),
            F=bins,
            T=frames,
            BLOCK_F=max(16, triton.next_power_of_2(bins)),
            BLOCK_T=max(16, triton.next_power_of_2(frames)),
            BLOCK_OUT=BLOCK_OUT,
            MIXUP=memory is not None,
            RESIZE=resize,
            A=CUBIC_A,
            num_warps=WARPS,
        )
    return views
