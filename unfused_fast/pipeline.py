"""The DALI graph: WebDataset reader -> decode -> crop -> (GPU) -> log-mel -> normalise -> SpecAugment -> torch.

B clips in a batch, N clips of the split, F mel bins, T frames, V views. One graph for CPU and GPU: with no GPU
`device_id` is None and every operator is DALI's CPU one, which needs no driver. Batches reach torch by DLPack, without
a
copy. The only file that imports DALI.

The reader follows index files that order.py writes for each epoch, and crops and masks are handed in beside the audio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from unfused_fast.batches import Batch as Batch
from unfused_fast.batches import Batches as Batches
from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.order import (
    Order,
    drawn_order,
    epoch_order,
    index_lines,
    key_width,
    random_crops,
    random_masks,
    uniform_draws,
    whole_crops,
    write_indexes,
)
from unfused_fast.shards.table import ShardSet
from unfused_fast.shards.workers import available_cores


class Reading(NamedTuple):
    """What is read, one clip after the other."""

    order: Order
    """Of each shard its lines."""
    clip_ids: NDArray[np.int64]
    """(N,)"""
    counters: NDArray[np.int64]
    """(N,) as in Batch."""


def import_dali() -> tuple[Any, Any, Any, Any]:
    """DALI's fn, math, types and Pipeline. Raises UserError that says which extra brings it."""
    try:
        from nvidia.dali import fn, math, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError as error:
        raise UserError(
            "DALI is not installed, and it decodes the audio here; install one extra, in a checkout: "
            "pip install '.[cpu]', or '.[cuda12]' or '.[cuda13]' for a GPU (see: unfused-fast doctor)"
        ) from error
    return fn, math, types, Pipeline


class Loader:
    """Batches of one split of a shard set, on one rank, decoded and computed anew each epoch."""

    start_seconds = 0.0

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        config: Config,
        *,
        device: torch.device,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        statistics: Mapping[str, float] | None = None,
        threads: int | None = None,
    ) -> None:
        """Reads the split's index files; `statistics` (mean, std of the log-mel) replace those of the set.

        Raises UserError for a split, shard or index that does not fit.
        """
        import_dali()  # where it is missing, that is said before anything is written
        self.shards, self.split, self.config, self.device = shards, split, config, device
        self.batch_size, self.world_size = batch_size, world_size
        self.threads = threads or max(1, min(available_cores(), 16) // world_size)
        self._shards: Order = [(path, index_lines(path)) for path in shards.shard_paths(split)]
        self.samples = shards.clips.column("samples").to_numpy()
        self.clips = sum(len(lines) for _, lines in self._shards)
        wanted = shards.manifest.splits[split].clips
        if self.clips != wanted:
            raise UserError(
                f"{shards.directory}: the indexes of split {split} list {self.clips} clips, the manifest {wanted}; "
                "pack it again"
            )
        self._share = rank * self.clips // world_size, (rank + 1) * self.clips // world_size
        known = statistics or shards.manifest.log_mel
        scaled = known is not None and config.data.norm == "dataset"
        self.mean, self.std = (known["mean"], known["std"]) if known is not None and scaled else (0.0, 1.0)

    @property
    def rank_clips(self) -> int:
        """Clips of this rank in an epoch; ranks differ by one at most."""
        return self._share[1] - self._share[0]

    @property
    def full_batches(self) -> int:
        """Batches of exactly batch_size clips that every rank has in an epoch."""
        return self.clips // self.world_size // self.batch_size

    def order(self, epoch: int | None, clusters: NDArray[np.int64] | None = None) -> Reading:
        """What this rank reads in an epoch. Epoch None: for whole clips, each shard from short to long.

        Args:
            clusters: as of `epoch`.
        """
        again: NDArray[np.int64] | int = 0
        if epoch is None:
            order = [
                (path, sorted(lines, key=lambda line: int(self.samples[line.clip_id])))
                for path, lines in epoch_order(self._shards, self._share, None)
            ]
        else:
            generator = np.random.Generator(np.random.PCG64([self.config.train.seed, epoch]))
            if clusters is None:
                order = epoch_order(self._shards, self._share, generator)
            else:
                rows, times = uniform_draws(clusters, generator)
                order, positions = drawn_order(self._shards, rows, self._share, self.batch_size)
                again = times[positions]
        ids = np.array([line.clip_id for _, lines in order for line in lines], dtype=np.int64)
        return Reading(order, ids, ids + again * len(self.samples))

    def epoch(
        self, epoch: int, views: int = 2, *, masks: bool = True, clusters: NDArray[np.int64] | None = None
    ) -> Iterator[Batch]:
        """Every clip of this rank once, as crops, in the order of (seed, epoch); the last batch holds what is left.

        With `clusters` (N,), the cluster of each clip of the split: as many draws, equally many from each non-empty
        cluster. SpecAugment masks each view apart, with `masks`. Crops are frames of the clip's log-mel: the same
        whether the log-mel is made of the crop (here) or of the whole clip. A clip shorter than the crop is padded with
        silence.
        """
        crops = 1 if self.config.views.same_crop else views
        masked = views if masks and self.config.aug.specaug.masks else 0

        def parameters(clip_ids: NDArray[np.int64], counters: NDArray[np.int64]) -> list[NDArray[Any]]:
            ids, arrays = torch.from_numpy(counters), list[NDArray[Any]]()
            for view in range(crops):
                arrays += random_crops(self.config, ids, self.samples[clip_ids], epoch, view)
            for view in range(masked):
                arrays += random_masks(self.config, ids, epoch, view)
            return arrays

        def graph(waveform: Any, given: list[Any]) -> list[Any]:
            fn = import_dali()[0]
            made = [self._log_mel(_cut(waveform, given[5 * crop : 5 * crop + 5])) for crop in range(crops)]
            erasures = given[5 * crops :]
            erased = [
                fn.erase(
                    made[view % crops],
                    anchor=erasures[2 * view],
                    shape=erasures[2 * view + 1],
                    axes=(0, 1),
                    fill_value=0.0,
                )
                for view in range(masked)
            ]
            return erased or made

        for clip_ids, counters, tensors in self._run(
            self.order(epoch, clusters), parameters, 5 * crops + 2 * masked, graph
        ):
            made = tuple(tensors[view % len(tensors)].unsqueeze(1) for view in range(views))
            yield Batch(clip_ids, made, None, counters)

    def whole_clips(self) -> Iterator[Batch]:
        """Every clip of this rank once, whole, each shard from short to long; T is the longest of its batch."""

        def parameters(clip_ids: NDArray[np.int64], _: NDArray[np.int64]) -> list[NDArray[Any]]:
            return list(whole_crops(self.config, self.samples[clip_ids]))

        def graph(waveform: Any, given: list[Any]) -> list[Any]:
            made = self._log_mel(_cut(waveform, given))
            return [import_dali()[0].pad(made, axes=(1,)), made.shape()]

        for clip_ids, counters, (log_mel, shapes) in self._run(self.order(None), parameters, 5, graph):
            counts = shapes[:, 1].to(torch.int64)
            longest = int(counts.max())  # the graph pads for the clips too with which it fills its last batch
            yield Batch(clip_ids, (log_mel[..., :longest].unsqueeze(1),), counts, counters)

    def _log_mel(self, waveform: Any) -> Any:
        """Samples with their context -> (F, T) normalised log-mel, on the GPU where there is one."""
        fn, math, _, _ = import_dali()
        config = self.config.frontend
        power = fn.spectrogram(
            waveform.gpu() if self.device.type == "cuda" else waveform,
            nfft=config.n_fft,
            window_length=config.n_fft,
            window_step=config.hop_samples,
            power=2,
            center_windows=False,
            window_fn=torch.hann_window(config.n_fft, periodic=True).tolist(),  # DALI's own Hann window is symmetric
        )
        mel = fn.mel_filter_bank(
            power,
            nfilter=config.n_mels,
            sample_rate=float(config.sample_rate_hz),
            freq_low=config.fmin_hz,
            freq_high=config.fmax_hz,
            mel_formula="slaney",
            normalize=True,
        )
        return (math.log(mel + config.log_floor) - self.mean) * (1.0 / self.std)

    def _run(
        self,
        reading: Reading,
        parameters: Callable[[NDArray[np.int64], NDArray[np.int64]], list[NDArray[Any]]],
        count: int,
        graph: Callable[[Any, list[Any]], list[Any]],
    ) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Clip ids, counters and the graph's outputs, batch by batch; `parameters` gives `count` arrays (B, ...) for
        ids and counters.
        """
        fn, _, types, pipeline_class = import_dali()
        order, ids, counters = reading

        def given(step: int) -> list[NDArray[Any]]:
            # the reader goes round after the last clip; what it repeats is cut off below
            taken = (step * self.batch_size + np.arange(self.batch_size)) % len(ids)
            return parameters(ids[taken], counters[taken])

        with tempfile.TemporaryDirectory(prefix="unfused-index-") as folder:
            pipeline = pipeline_class(
                batch_size=self.batch_size,
                num_threads=self.threads,
                device_id=(self.device.index or 0) if self.device.type == "cuda" else None,
                exec_dynamic=True,
            )
            with pipeline:
                encoded, digits = fn.readers.webdataset(
                    paths=[str(path) for path, _ in order],
                    index_paths=write_indexes(Path(folder), order),
                    ext=[self.shards.manifest.codec, "index"],
                    missing_component_behavior="error",
                    name="reader",
                )
                decoded, _ = fn.decoders.audio(encoded, dtype=types.FLOAT)
                waveform = fn.reshape(decoded, shape=[1, -1, 1], layout="HWC")
                arrays = list(fn.external_source(source=given, num_outputs=count, batch=True))
                pipeline.set_outputs(_clip_id(digits, key_width(order)), *graph(waveform, arrays))
            pipeline.build()
            for done in range(0, len(ids), self.batch_size):
                try:
                    outputs = pipeline.run()
                except RuntimeError as error:
                    raise UserError(
                        f"{self.shards.directory}: a shard of split {self.split} could not be decoded "
                        f"({_last_line(error)}); unfused-fast check names it"
                    ) from error
                valid = min(self.batch_size, len(ids) - done)
                found, *rest = (from_dlpack(output.as_tensor())[:valid].to(self.device) for output in outputs)
                counted = torch.from_numpy(counters[done : done + valid]).to(self.device)
                yield found.reshape(-1), counted, rest


def _cut(waveform: Any, crop: list[Any]) -> Any:
    """(1, L, 1) -> samples of the crop with the reflected edges of a centred STFT; beyond the clip's end lie zeros."""
    fn = import_dali()[0]
    head, body_start, body, tail_start, tail = crop

    def part(start: Any, length: Any) -> Any:
        return fn.slice(waveform, start=start, shape=length, axes=(1,), out_of_bounds_policy="pad")

    pieces = fn.flip(part(1, head)), part(body_start, body), fn.flip(part(tail_start, tail))
    return fn.reshape(fn.cat(*pieces, axis=1), shape=[-1], layout="")


def _clip_id(digits: Any, width: int) -> Any:
    fn, _, types, _ = import_dali()
    powers = types.Constant(np.array([10**place for place in range(width - 1, -1, -1)], dtype=np.int64))
    return fn.reductions.sum((fn.cast(digits, dtype=types.INT64) - 48) * powers, axes=(0,), keep_dims=True)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("Assert", "Error", "Unsupported"))]
    return (named or lines or [type(error).__name__])[-1][:200]
