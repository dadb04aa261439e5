"""The DALI graph: WebDataset reader -> decode -> crop -> (GPU) -> log-mel -> normalise -> SpecAugment -> torch.

B clips in a batch, N clips of the split, F mel bins, T frames, V views. One graph for CPU and GPU: with no GPU
`device_id` is None and every operator is DALI's CPU one, which needs no driver; there the graph ends with the waveform
of the crop unless asked to go on, because torch makes log-mels of it in half the time. Batches reach torch by DLPack,
without a copy.

The reader follows index files that order.py writes for each epoch, so that of a WAV only the crop's part is read, and
crops and masks are handed in beside the audio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from unfused_fast.config import Config
from unfused_fast.data.batches import Batch as Batch
from unfused_fast.data.batches import Batches as Batches
from unfused_fast.data.batches import empty_batch
from unfused_fast.data.dali import Dali, clip_pipeline, log_mel
from unfused_fast.data.front_end import framed_log_mel
from unfused_fast.data.order import (
    Crop,
    Order,
    Reading,
    Rows,
    crop_samples,
    index_lines,
    key_width,
    random_crops,
    random_masks,
    rows_of_epoch,
    wav_part,
    whole_crops,
    write_indexes,
)
from unfused_fast.data.skipped_clips import SkippedClips
from unfused_fast.data.spec_augment import SpecAugment
from unfused_fast.data.statistics import set_statistics
from unfused_fast.distributed import WHOLE, Share
from unfused_fast.errors import UserError
from unfused_fast.optional import importing
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.table import ShardSet


def import_dali() -> Dali:
    """DALI's fn, math, types and Pipeline. Raises UserError: it is not installed or does not load."""
    install = "pip install '.[cpu]', or '.[cuda12]' or '.[cuda13]' for a GPU (see: unfused-fast doctor)"
    with importing("nvidia.dali", "DALI", "decoding audio", install):
        from nvidia.dali import fn, math, types
        from nvidia.dali.pipeline import Pipeline
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
        share: Share = WHOLE,
        statistics: Mapping[str, float] | None = None,
        threads: int | None = None,
        log_mel: Literal["dali", "torch"] | None = None,
        only: NDArray[np.int64] | None = None,
        skipped: SkippedClips | None = None,
    ) -> None:
        """Reads the split's index files; `statistics` (mean, std of the log-mel) replace those of the set.

        Args:
            batch_size: clips of a batch on all ranks.
            share: this rank's part of each batch.
            threads: that decode; one a core, up to 16, unless said.
            log_mel: what computes the log-mels; None: DALI on a GPU, torch on a CPU, where it takes half the time.
            only: ids of the clips of the split that are read; None: all.
            skipped: what becomes of clips that cannot be read; None: an error.

        Raises:
            UserError: a split, shard or index that does not fit.
        """
        import_dali()  # where it is missing, that is said before anything is written
        self.shards, self.split, self.config, self.device = shards, split, config, device
        self.batch_size, self.share = batch_size, share
        self.log_mel = log_mel or ("dali" if device.type == "cuda" else "torch")
        self.threads = threads or min(available_cores(), 16)
        self.skipped = skipped or SkippedClips()
        cut_short = self.skipped.limit > 0
        self._shards: Order = [(path, index_lines(path, cut_short)) for path in shards.shard_paths(split)]
        self.samples = shards.clips.column("samples").to_numpy()
        listed, wanted = sum(len(lines) for _, lines in self._shards), shards.manifest.splits[split].clips
        if listed != wanted:
            raise UserError(
                f"{shards.directory}: the indexes of split {split} list {listed} clips, the manifest {wanted}; "
                "pack it again"
            )
        if only is not None:
            chosen = frozenset(only.tolist())
            self._shards = [(path, [line for line in lines if line.clip_id in chosen]) for path, lines in self._shards]
        self._ids = [np.array([line.clip_id for line in lines], dtype=np.int64) for _, lines in self._shards]
        self.clips = sum(map(len, self._ids))
        self.own_batch_size = share.sizes(batch_size)[share.rank]
        if min(share.sizes(batch_size)) == 0:
            raise UserError(
                f"a batch of {batch_size} clips is fewer than the {share.world_size} processes that share it; use a "
                "larger --set train.batch_size, or fewer --devices"
            )
        known = statistics or set_statistics(shards, config.frontend)
        scaled = known is not None and config.data.norm in ("dataset", "running")
        self.mean, self.std = (known["mean"], known["std"]) if known is not None and scaled else (0.0, 1.0)

    @property
    def clip_ids(self) -> NDArray[np.int64]:
        """(N,) of all clips of the split that are read, as packed."""
        return np.concatenate(self._ids)

    @property
    def full_batches(self) -> int:
        """Batches of exactly batch_size clips in an epoch."""
        return self.clips // self.batch_size

    def order(self, epoch: int | None, clusters: NDArray[np.int64] | None = None) -> Reading:
        """What this rank reads in an epoch. Epoch None: for whole clips, each shard from short to long.

        Args:
            clusters: as of `epoch`.
        """
        rows, ids, counters = self.rows(epoch, clusters)
        order = [(self._shards[number][0], [self._shards[number][1][row] for row in part]) for number, part in rows]
        return Reading(order, ids, counters)

    def rows(
        self, epoch: int | None, clusters: NDArray[np.int64] | None = None
    ) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
        """As order, in numbers alone, for who does not read the shards: rows of shards, and (N,) ids and counters."""
        counts, seed = [len(ids) for ids in self._ids], self.config.train.seed
        found, times = rows_of_epoch(counts, self.share, seed, epoch, clusters, self.batch_size)
        if epoch is None:
            found = [
                (number, rows[np.argsort(self.samples[self._ids[number][rows]], kind="stable")])
                for number, rows in found
            ]
        ids = np.concatenate([self._ids[0][:0], *(self._ids[number][rows] for number, rows in found)])
        return found, ids, ids + times * len(self.samples)

    def epoch(
        self,
        epoch: int,
        views: int = 2,
        *,
        masks: bool = True,
        clusters: NDArray[np.int64] | None = None,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """Every clip of this rank once, as crops, in the order of (seed, epoch); the last batch holds what is left, on
        a rank perhaps nothing, so that all ranks have as many batches.

        With `clusters` (N,), the cluster of each clip of the split: as many draws, equally many from each non-empty
        cluster. SpecAugment masks each view apart, with `masks`. Crops are frames of the clip's log-mel: the same
        whether the log-mel is made of the crop (here) or of the whole clip. A clip shorter than the crop is padded with
        silence. Batches before `first_batch` are left out, and nothing of them is read.
        """
        parts = self.share.batches(self.clips, self.batch_size)[first_batch:]
        reading = self.order(epoch, clusters).after(parts[0].start if parts else self.clips)
        ids, samples = torch.from_numpy(reading.counters), self.samples[reading.clip_ids]
        same = self.config.views.same_crop
        crops = [random_crops(self.config, ids, samples, epoch, view) for view in range(1 if same else views)]
        settings, in_torch = self.config.aug.specaug, self.log_mel == "torch"
        # DALI has no time warp, and masks come after it
        spec_augment = (
            SpecAugment(self.config, ids.to(self.device), epoch, views)
            if masks and settings.active and (in_torch or settings.warp)
            else None
        )
        masked = range(views) if masks and settings.masks and spec_augment is None else range(0)
        drawn = [random_masks(self.config, ids, epoch, view) for view in masked]

        def erase(log_mels: list[Any], given: list[Any]) -> list[Any]:
            erased = [
                import_dali()[0].erase(
                    log_mels[view % len(crops)],
                    anchor=given[2 * view],
                    shape=given[2 * view + 1],
                    axes=(0, 1),
                    fill_value=0.0,
                )
                for view in masked
            ]
            return erased or log_mels

        def in_dali(waveforms: list[Any], given: list[Any]) -> list[Any]:
            return erase([self._log_mel(waveform) for waveform in waveforms], given)

        arrays = [array for pair in drawn for array in pair]
        graph = None if in_torch else in_dali
        for clip_ids, counters, tensors, rows in self._run(reading, crops, arrays, graph):
            if graph is None:
                frontend = self.config.frontend
                tensors = [framed_log_mel(waveform, frontend, self.mean, self.std) for waveform in tensors]
            if spec_augment is not None:
                tensors = [spec_augment(tensors[view % len(crops)], rows, view) for view in range(views)]
            made = tuple(tensors[view % len(tensors)].unsqueeze(1) for view in range(views))
            yield Batch(clip_ids, made, None, counters)
        if parts and parts[-1].start == parts[-1].stop:
            yield empty_batch(self.config, views, self.device)

    def whole_clips(self) -> Iterator[Batch]:
        """Every clip of this rank once, whole, each shard from short to long; T is the longest of its batch."""
        reading = self.order(None)
        crops = [whole_crops(self.config, self.samples[reading.clip_ids])]

        config, in_dali = self.config.frontend, self.log_mel == "dali"
        samples = np.maximum(self.samples[reading.clip_ids], crop_samples(self.config))
        frames = torch.from_numpy(1 + samples // config.hop_samples)

        def graph(waveforms: list[Any], _: list[Any]) -> list[Any]:
            made = self._log_mel(waveforms[0]) if in_dali else waveforms[0]
            return [import_dali()[0].pad(made, axes=(1 if in_dali else 0,))]

        for clip_ids, counters, (made,), rows in self._run(reading, crops, [], graph, whole=True):
            counts = frames[rows]
            longest = int(counts.max())  # padded, too, for the clips that fill the graph's last batch
            if in_dali:
                values = made[..., :longest]
            else:
                waveforms = made[:, : (longest - 1) * config.hop_samples + config.n_fft]
                values = framed_log_mel(waveforms, config, self.mean, self.std)
                values *= (torch.arange(longest) < counts[:, None])[:, None]
            yield Batch(clip_ids, (values.unsqueeze(1),), counts.to(self.device), counters)

    def _log_mel(self, waveform: Any) -> Any:
        """Samples with their context -> (F, T) normalised log-mel, on the GPU where there is one."""
        there = waveform.gpu() if self.device.type == "cuda" else waveform
        return log_mel(import_dali(), there, self.config.frontend, self.mean, self.std)

    def _run(
        self,
        reading: Reading,
        crops: list[Crop],
        arrays: list[NDArray[Any]],
        graph: Callable[[list[Any], list[Any]], list[Any]] | None,
        whole: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, list[Tensor], slice]]:
        """Clip ids, counters and outputs batch by batch, and which of the N clips they are.

        Args:
            crops: of all clips that are read; the graph gets a waveform of each.
            arrays: (N, ...) what the graph gets beside them.
            graph: None: the outputs are the waveforms.
            whole: the crops are all of each clip; then a WAV is decoded, which tells of a damaged header.
        """
        ids, size, codec, done = reading.clip_ids, self.own_batch_size, self.shards.manifest.codec, 0
        while done < len(ids):
            silent = self.skipped.among(ids)
            with tempfile.TemporaryDirectory(prefix="unfused-index-") as folder:
                left, handed = [crop.after(done) for crop in crops], [array[done:] for array in arrays]
                pipeline = self._pipeline(Path(folder), reading.after(done), silent[done:], left, handed, graph, whole)
                while done < len(ids):
                    rows = slice(done, min(done + size, len(ids)))
                    try:
                        pipeline.build()  # does nothing but the first time
                        outputs = pipeline.run()
                    except RuntimeError as error:
                        del pipeline  # while one lives, DALI gives the next what a mended shard held before
                        error.__traceback__ = None
                        self.skipped.find(error, self.split, reading, slice(done, done + size), codec, self.samples)
                        break
                    valid = rows.stop - rows.start
                    found, *rest = (from_dlpack(output.as_tensor())[:valid].to(self.device) for output in outputs)
                    found, done = found.reshape(-1), rows.stop
                    if silent[rows].any():  # what was read in their place has ids of its own
                        found = torch.where(self._put(silent[rows]), self._put(ids[rows]), found)
                    yield found, self._put(reading.counters[rows]), rest, rows

    def _pipeline(
        self,
        folder: Path,
        reading: Reading,
        silent: NDArray[np.bool_],
        crops: list[Crop],
        arrays: list[NDArray[Any]],
        graph: Callable[[list[Any], list[Any]], list[Any]] | None,
        whole: bool,
    ) -> Any:
        """What reads as _run says; silent clips (N,) are zeros. Its index files lie in `folder`."""
        codec, unit_norm = self.shards.manifest.codec, self.config.data.norm == "wave_l2"
        parts = codec == "wav" and not whole and not unit_norm
        part = wav_part(crops, self.samples[reading.clip_ids], silent) if parts else None
        order = reading.order
        if silent.any():
            order = self.skipped.without(order, codec, self.samples)
            crops = [crop.silenced(silent) for crop in crops]
        return clip_pipeline(
            import_dali(),
            [str(path) for path, _ in order],
            write_indexes(folder, order, part),
            crops if part is None else [crop.moved(part.origin) for crop in crops],
            arrays if graph is not None else [],
            graph,
            codec=codec,
            key_width=key_width(order),
            decoded=part is None,
            unit_norm=unit_norm,
            batch_size=self.own_batch_size,
            threads=self.threads,
            device_id=(self.device.index or 0) if self.device.type == "cuda" else None,
        )

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
