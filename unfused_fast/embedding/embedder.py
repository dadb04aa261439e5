"""A trained encoder for waveforms.   B clips, F mel bins, T frames, T' steps of the encoder, L layers, D features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unfused_fast.config import SHIPPED, feature_layers
from unfused_fast.data import Waveform, clips_16k, framed_log_mel, log_mel, unit_norm
from unfused_fast.embedding.pieces import CPU_FRAMES, PIECE_FRAMES, ClipPiece, cutting_of, in_batches
from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.hub import is_hub
from unfused_fast.models import EncoderOutput, Pool, layer_shapes, layer_steps
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.stages import FrozenEncoder, load_encoder
from unfused_fast.training import encoder_digest, resolve_device


class PieceSteps(NamedTuple):
    """A layer's output for B pieces."""

    steps: Tensor
    """(B, T', D) float32; of the first blocks several times as many steps as the encoder gives."""
    kept: Tensor | None
    """(B, T') bool: steps of the clip itself; the others are context or padding. None: there are no others."""


class Pooled:
    """Pooling over time of B clips from pieces in any order, each of L layers by itself."""

    def __init__(self, clips: int, dims: Sequence[int], device: torch.device) -> None:
        """`dims`: D of each layer."""
        # sums, largest values and numbers of steps; in float64 a sum of many pieces does not depend on their order
        self._layers = [
            (
                torch.zeros(clips, dim, dtype=torch.float64, device=device),
                torch.full((clips, dim), -torch.inf, device=device),
                torch.zeros(clips, 1, dtype=torch.int64, device=device),
            )
            for dim in dims
        ]

    def add(self, clips: Sequence[int], found: Sequence[PieceSteps]) -> None:
        """The pieces of some clips, from each layer."""
        rows = torch.tensor(clips, device=found[0].steps.device)
        for (total, highest, count), (steps, kept) in zip(self._layers, found, strict=True):
            bounded, number = steps, torch.full((len(clips), 1), steps.shape[1], device=rows.device)
            if kept is not None:
                outside, number = ~kept[..., None], kept.sum(dim=1, keepdim=True)
                steps, bounded = steps.masked_fill(outside, 0.0), steps.masked_fill(outside, -torch.inf)
            largest = bounded.amax(dim=1)
            total.index_add_(0, rows, steps.sum(dim=1).double())
            highest.scatter_reduce_(0, rows[:, None].expand_as(largest), largest, "amax")
            count.index_add_(0, rows, number)

    def embedding(self, pool: Pool) -> Tensor:
        """(B, sum of D) float32, each layer as model.pool_time."""
        made = []
        for total, largest, count in self._layers:
            mean = (total / count).float()
            made.append({"maxmean": mean + largest, "mean": mean, "max": largest}[pool])
        return torch.cat(made, dim=1)


class Embedder(nn.Module):
    """Waveforms to embeddings, by a frozen encoder in eval mode, in float32 on any device.

    The log-mel is that of training: 16 kHz, normalised by the statistics of the set that the encoder was trained on, a
    clip shorter than a training crop padded with silence. A clip's embedding does not depend on the other clips of its
    batch. Clips longer than PIECE_FRAMES are encoded in pieces, in bounded memory, and pooled over all of them: exact
    for AudioNTT; EfficientNet-B0 encodes each piece separately (pieces.py).
    """

    def __init__(self, encoder: FrozenEncoder, pool: Pool | None = None, features: str = "encoder") -> None:
        """Takes ownership of the encoder.

        Args:
            pool: over time; None: as the encoder was trained (`model.pool`).
            features: layers whose pooled outputs stand side by side, as `eval.features`; there is no projection head.

        Raises:
            UserError: no encoder, or no such pool or features.
        """
        super().__init__()
        if encoder.network is None:
            raise UserError(f"{encoder.name}: it has no encoder; give a run of train pretrain, distill or finetune")
        self.name, self.config = encoder.name, encoder.config
        self.pool: Pool = encoder.config.model.pool if pool is None else pool
        if self.pool not in get_args(Pool):
            raise UserError(f"pool = {pool!r}: want one of {', '.join(get_args(Pool))}")
        self.cutting, self.features = cutting_of(encoder.config), features
        self._layers = feature_layers(features, "features")
        norm = encoder.config.data.norm
        scaled, self.unit_norm = encoder.log_mel if norm in ("dataset", "running") else None, norm == "wave_l2"
        self.mean, self.std = (0.0, 1.0) if scaled is None else (scaled["mean"], scaled["std"])
        self.encoder = encoder.network
        self.sample_rate = SAMPLE_RATE_HZ
        shapes = layer_shapes(self.encoder, self.config, self._layers)
        self.layer_sizes, self._per_step = [size for size, _ in shapes], [steps for _, steps in shapes]
        self.scene_embedding_size = sum(self.layer_sizes)
        self.timestamp_embedding_size = int(self.encoder.dim)  # type: ignore[arg-type]
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, device: str = "auto", pool: Pool | None = None
    ) -> Embedder:
        """As load; USER/NAME without hf:// is a model on the Hub, unless it is a folder here.

        Args:
            revision: branch, tag or commit, of the Hub.

        Raises:
            UserError: as load, or a revision of what is not on the Hub.
        """
        if not is_hub(name) and not Path(name).exists() and str(name) != SHIPPED:
            name = f"hf://{name}"
        if revision is not None:
            if not is_hub(name):
                raise UserError(f"{name}: revision {revision}, but it is not on the Hub; leave the revision out")
            name = f"{name}@{revision}"
        return load(name, device, pool)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes a model folder: config.json, model.safetensors, and a model card. Raises as export.save_folder."""
        from unfused_fast.embedding.export import save_folder

        save_folder(self, Path(folder), overwrite)

    def push_to_hub(self, name: str, message: str | None = None, private: bool | None = None) -> str:
        """Uploads the model folder to USER/NAME, or a branch of it, on the Hub, as one commit; returns its address.

        Args:
            name: `USER/NAME`, or `USER/NAME@BRANCH`, with `hf://` before it or not.
            private: of a new repository; None: as the account has it.

        Raises:
            UserError: as hub.push_folder.
        """
        from unfused_fast.embedding.export import push

        return push(self, name if is_hub(name) else f"hf://{name}", message, private)

    @property
    def device(self) -> torch.device:
        """Device of the encoder and of the embeddings."""
        return next(self.parameters()).device

    @property
    def batch_frames(self) -> int:
        """Most frames of several clips in one pass."""
        return CPU_FRAMES if self.device.type == "cpu" else PIECE_FRAMES

    @property
    def digest(self) -> str:
        """sha256 (hex) of the encoder's tensors."""
        return encoder_digest(self.encoder)

    def train(self, mode: bool = True) -> Embedder:
        """Always stays in eval mode: batch statistics and dropout would mix the clips of a batch."""
        return super().train(False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) at 16 kHz -> (B, D), as embed."""
        return self.embed(waveform, self.sample_rate)

    @torch.no_grad()
    def embed(self, waveform: Waveform, sample_rate: int, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """(B, D) float32 on the encoder's device: each clip pooled over time; B is 1 for a single (samples,).

        Args:
            waveform: see Waveform; a list holds clips of any lengths.
            sample_rate: of `waveform`, in hertz; resampled by soxr HQ to 16 kHz where it differs, as `shard` does.
            lengths: samples of each row of a (B, samples) batch; the rest of a row is ignored.

        Raises:
            UserError: an empty clip, integers or samples far above 1, another shape, one that looks like (samples,
                channels), NaN or infinity, or a sample rate that audio does not have.
        """
        clips = self._clips(waveform, sample_rate, lengths)
        pooled = Pooled(len(clips), self.layer_sizes, self.device)
        for numbers, found, _ in self._batches(clips):
            pooled.add(numbers, found)
        return pooled.embedding(self.pool)

    @torch.no_grad()
    def embed_frames(
        self, waveform: Waveform, sample_rate: int, lengths: Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T', D) float32 before pooling, and (B, T') float32 milliseconds of the centre of each step, of
        the encoder's end alone.

        T' is that of the longest clip; a clip has `cutting.steps(samples at 16 kHz)` steps, then zeros. The silence
        after a clip shorter than a training crop has steps too, as in embed. Args and Raises: as embed; and UserError
        for other `features`, whose steps are not equally many.
        """
        self.refuse_frames()
        clips = self._clips(waveform, sample_rate, lengths)
        steps = [self.cutting.steps(len(clip)) for clip in clips]
        made = torch.zeros(len(clips), max(steps), self.timestamp_embedding_size, device=self.device)
        for numbers, found, pieces in self._batches(clips):
            for values, number, piece in zip(found[0].steps, numbers, pieces, strict=True):
                first = piece.first_frame // self.cutting.stride + piece.first_step
                made[number, first : first + piece.steps] = values[piece.span]
        centres = np.asarray(self.cutting.centre_ms(np.arange(max(steps))), np.float32)
        return made, torch.from_numpy(centres).to(self.device).expand(len(clips), -1)

    def refuse_frames(self) -> None:
        """Raises UserError for features that have no steps of the encoder."""
        if self.features != "encoder":
            raise UserError(f"features = {self.features}: steps are of the encoder's end alone; leave features out")

    def _batches(self, clips: Sequence[Tensor]) -> Iterator[tuple[list[int], list[PieceSteps], list[ClipPiece]]]:
        """The numbers of the clips of some pieces, what each layer gives for them, and the pieces."""
        flat = [(number, piece) for number, clip in enumerate(clips) for piece in self.cutting.pieces(len(clip))]
        for batch in in_batches([piece for _, piece in flat], self.batch_frames):
            numbers, pieces = [flat[place][0] for place in batch], [flat[place][1] for place in batch]
            waves = [clips[number][piece.start : piece.stop] for number, piece in zip(numbers, pieces, strict=True)]
            yield numbers, self.piece_steps(list(zip(waves, pieces, strict=True))), pieces

    @ieee_float32()
    def piece_steps(self, pieces: Sequence[tuple[Tensor, ClipPiece]]) -> list[PieceSteps]:
        """(samples [start, stop) of a clip at 16 kHz, the piece) of B pieces -> the steps of each of L layers."""
        frontend, where = self.config.frontend, pieces[0][0].device  # whole batches are moved, not single clips
        edged = [self._edged(wave.to(where, torch.float32), piece) for wave, piece in pieces]
        padded = nn.utils.rnn.pad_sequence(edged, batch_first=True).to(self.device)
        if padded.device.type == "cpu":
            normalised = framed_log_mel(padded, frontend, self.mean, self.std)
        else:
            normalised = (log_mel(padded, frontend, edges=False) - self.mean) * (1.0 / self.std)
        spans = [(piece.frames, piece.first_step, piece.first_step + piece.steps) for _, piece in pieces]
        lengths, first, stop = torch.tensor(spans, device=self.device).unbind(1)
        # masking takes a tenth of the time, so it is skipped without padding
        counts = None if len({frames for frames, _, _ in spans}) == 1 else lengths
        output: EncoderOutput = self.encoder(normalised[:, None], counts)
        last = stop == (output.frames.shape[1] if output.frame_counts is None else output.frame_counts)
        whole = counts is None and all((begin, end) == (0, output.frames.shape[1]) for _, begin, end in spans)
        found = []
        for layer, per_step in zip(self._layers, self._per_step, strict=True):
            steps, valid = layer_steps(output, layer)
            if whole:
                found.append(PieceSteps(steps.float(), None))
                continue
            place, end = torch.arange(steps.shape[1], device=self.device), stop * per_step
            # the last piece of a clip keeps steps of the first blocks that fill no step of the encoder
            end = torch.where(last, steps.shape[1] if valid is None else valid, end)
            found.append(PieceSteps(steps.float(), (place >= per_step * first[:, None]) & (place < end[:, None])))
        return found

    def _edged(self, wave: Tensor, piece: ClipPiece) -> Tensor:
        """Samples under a piece's windows: by `frontend.pad_mode` at the clip's edges, silence after its end."""
        low, high = self.cutting.span(piece.first_frame, piece.first_frame + piece.frames)
        start, length = piece.start, piece.length
        silence = max(min(high, length), 1 - low) - start - len(wave)
        there = nn.functional.pad(wave, (0, max(0, silence)))
        parts = [there[max(low, 0) - start : min(high, length) - start]]
        if self.config.frontend.pad_mode == "constant":
            return nn.functional.pad(parts[0], (max(0, -low), max(0, high - length)))
        if low < 0:
            parts.insert(0, there[1 : 1 - low].flip(0))
        if high > length:
            parts.append(there[2 * length - 1 - high - start : length - 1 - start].flip(0))
        return torch.cat(parts)

    def _clips(self, waveform: Waveform, sample_rate: int, lengths: Sequence[int] | Tensor | None) -> list[Tensor]:
        """Each clip at 16 kHz, divided by its L2 norm where the encoder was trained so."""
        clips = clips_16k(waveform, sample_rate, lengths)
        return [unit_norm(clip) for clip in clips] if self.unit_norm else clips


def load(run: str | Path, device: str = "auto", pool: Pool | None = None, features: str = "encoder") -> Embedder:
    """The encoder of a run directory of train pretrain, distill or finetune, or of a model folder that `export --hub`
    wrote, here or on the Hugging Face Hub (hf://USER/NAME, hf://USER/NAME@REVISION); "base" is the one in this package.

    Args:
        device: auto, cpu, cuda or cuda:N.
        pool, features: see Embedder.

    Raises:
        UserError: no such run, folder or model, damaged files, or no such device, pool or features.
    """
    return Embedder(load_encoder(run, resolve_device(device)), pool, features)
