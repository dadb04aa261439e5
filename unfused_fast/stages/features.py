"""Features of whole clips from a frozen encoder.   N clips of a split, n of them on this rank, B clips in a batch, F
mel bins, T frames, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from unfused_fast.config import BASELINES, Config, Store, feature_layers, from_flat
from unfused_fast.console import console, progress_bar
from unfused_fast.data import Batches, Loader, Window, eval_window, fill_left_out, final_statistics, placed
from unfused_fast.distributed import ALONE, WHOLE, Ranks, first_buffers
from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.methods import method_class
from unfused_fast.models import EncoderOutput, Pool, build_encoder, layer_steps, pool_time
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import (
    WEIGHTS,
    Options,
    encoder_name,
    encoder_place,
    load_checkpoint,
    prepare_for,
    read_description,
    read_model_folder,
    refuse_misfit,
)

BEST = "best."
"""Prefix of the tensors of a fine-tuned network after the epoch that selection chose."""
Network = TypeVar("Network", bound=torch.nn.Module)
WHOLE_CLIP_BATCH = 32
"""Whole clips per batch. Ours: 32 clips of 10 s keep the first convolution's maps under a gigabyte in float32."""
BLOCK_CLIPS, BLOCKS = 32 * WHOLE_CLIP_BATCH, 64
"""Fewest neighbouring clips of a block, of which one rank has all, and most blocks of a split. Ours: from short to long
they are batches with little padding, the same ones on any number of ranks, so that the last bits of a convolution,
which may depend on the batch, are equal."""


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder for inference: its config, the log-mel statistics it was trained with, and a network in eval
    mode.
    """

    name: str
    config: Config
    log_mel: dict[str, float] | None
    """Mean and std that it expects; None: those of the shard set (baselines)."""
    network: torch.nn.Module | None
    projector: torch.nn.Module | None

    def features(self, log_mel: Tensor, frame_counts: Tensor, kind: str, pool: Pool) -> Tensor:
        """(B, 1, F, T) normalised, (B,) valid frames -> (B, D) float32: the layers of `kind` as in `eval.features`,
        each pooled over the whole clip.
        """
        if self.network is None:
            return log_mel_statistics_features(log_mel, frame_counts)
        output: EncoderOutput = self.network(log_mel, frame_counts)
        layers = feature_layers("encoder" if kind == "projector" else kind, "features")
        pooled = torch.cat([pool_time(*layer_steps(output, layer), pool) for layer in layers], dim=1)
        if kind != "projector":
            return pooled.float()
        return torch.as_tensor(self.head()(pooled)).float()

    def head(self) -> torch.nn.Module:
        """The projection head. Raises UserError where there is none."""
        if self.projector is None:
            raise UserError(
                f"{self.name}: it has no projection head (only pre-training runs do); leave the feature at encoder"
            )
        return self.projector


def log_mel_statistics_features(log_mel: Tensor, frame_counts: Tensor) -> Tensor:
    """(B, 1, F, T) -> (B, 2 F): mean and standard deviation of each mel bin over the clip's frames, the `logmel`
    baseline.
    """
    valid = (torch.arange(log_mel.shape[-1], device=log_mel.device) < frame_counts[:, None])[:, None, :]
    counts = frame_counts[:, None].float()
    values = log_mel[:, 0].float()
    mean = (values * valid).sum(dim=-1) / counts
    variance = ((values - mean[..., None]).square() * valid).sum(dim=-1) / counts
    return torch.cat([mean, variance.sqrt()], dim=1)


def load_encoder(run: str | Path, device: torch.device) -> FrozenEncoder:
    """The encoder (and the projection head, where there is one) of a finished pre-training or distillation run, that of
    the chosen epoch of a fine-tuning run, or the encoder of a model folder (training/model_folder.py); `base` is the
    package's.
    """
    name, run = encoder_name(run), encoder_place(run)
    recorded = read_description(run)
    if recorded is None:
        raise UserError(
            f"{run}: not a run of unfused-fast (no config.json); give a directory that train pretrain, distill or "
            "finetune wrote, or base, a model folder, or hf://USER/NAME"
        )
    if (run / WEIGHTS).is_file():
        config, encoder = read_model_folder(run, recorded)
        return FrozenEncoder(name, config, recorded["log_mel"], prepare_for(encoder, device).eval(), None)
    if recorded["stage"] not in ("pretrain", "distill", "finetune"):
        raise UserError(f"{run}: a run of stage {recorded['stage']}; give one of train pretrain, distill or finetune")
    tensors, _, damaged = load_checkpoint(run / "checkpoints")
    for sentence in damaged:
        console.print(f"{sentence}; using the one before it", style="yellow")
    prefix = BEST if recorded["stage"] == "finetune" else "model."
    model = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        config = from_flat(recorded["config"])
        if recorded["stage"] == "pretrain":
            whole = _built(lambda: method_class(config).build(config), model)
            network, head = whole.get_submodule("encoder"), dict(whole.named_children()).get("projector")
            projector = None if head is None else prepare_for(head, device).eval()
        else:
            own = {name.removeprefix("encoder."): value for name, value in model.items() if name[:8] == "encoder."}
            network, projector = _built(lambda: build_encoder(config), own), None
    except UserError as error:
        raise UserError(f"{run}: {error}") from error
    # without any, its set was packed without statistics: it learned from log-mels as they are
    statistics = final_statistics(recorded["log_mel"], tensors) or {"mean": 0.0, "std": 1.0}
    return FrozenEncoder(name, config, statistics, prepare_for(network, device).eval(), projector)


def _built(build: Callable[[], Network], tensors: dict[str, Tensor]) -> Network:
    """A network with these tensors. Raises UserError unless they match it, before memory for it is allocated."""
    try:
        with torch.device("meta"):
            own = build().state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UserError("its config describes an impossible network; train again") from error
    refuse_misfit(own, tensors)
    network = build()
    network.load_state_dict(tensors)
    return network


def baseline_encoder(name: str, config: Config, device: torch.device) -> FrozenEncoder:
    """`random`: the config's encoder as initialised by its seed; `logmel`: no encoder."""
    if name == "logmel":
        return FrozenEncoder(name, config, None, None, None)
    torch.manual_seed(config.train.seed)
    return FrozenEncoder(name, config, None, prepare_for(build_encoder(config), device).eval(), None)


def encoder_of(name: str, config: Config, device: torch.device) -> FrozenEncoder:
    """A baseline, or the encoder of a run or model folder, as load_encoder."""
    return baseline_encoder(name, config, device) if name in BASELINES else load_encoder(name, device)


@torch.no_grad()
@ieee_float32()
def extract(
    encoder: FrozenEncoder,
    shards: ShardSet,
    split: str,
    kind: str,
    pool: Pool,
    device: torch.device,
    store: Store = "stream",
    read_again: bool = False,
    window: Window | None = None,
    left_out: Sequence[int] = (),
    ranks: Ranks = ALONE,
) -> Tensor:
    """(N, D) float32 on the device: row i is the i-th clip of the split in the clips table, each clip once: whole, or a
    `window` of it. A `left_out` clip gets the row of another.

    Each of several `ranks` makes the rows of its blocks; rank 0 gets all, the others none (0, D). The same bits on any
    number of ranks.

    Ours: in float32 whatever the training used, so that a clip's features do not depend on the device's precision. With
    `store` auto the log-mels come from the shards where there is no cache yet: one pass does not justify making one,
    unless the same command reads the split again (`read_again`).

    Raises UserError, on all ranks: clips that cannot be read, or features that are not finite.
    """
    clips = ranks.every(lambda: len(shards.clips_in(split)))
    size = max(BLOCK_CLIPS, -(-clips // (BLOCKS * WHOLE_CLIP_BATCH)) * WHOLE_CLIP_BATCH)
    share = ranks.share._replace(block=size)
    if encoder.network is not None and encoder.network.training:
        assert not ranks.together  # its running statistics follow the batches, each shard from short to long
        share = WHOLE

    def stream() -> Loader:
        if not clips:
            raise UserError(f"{shards.directory}: split {split} holds no clips; pack the set again")
        return Loader(
            shards,
            split,
            encoder.config,
            device=device,
            batch_size=WHOLE_CLIP_BATCH * ranks.world_size,
            share=share,
            statistics=encoder.log_mel,
            threads=Options(device, ranks=ranks).threads,
            left_out=left_out,
        )

    loader = placed(ranks.every(stream), store, single_pass=not read_again, ranks=ranks)
    own = ranks.every(lambda: _own_features(encoder, loader, kind, pool, window))
    if ranks.together:
        width = int(ranks.largest(torch.tensor(own.shape[1])))
        own = own if len(own) else own.new_empty(0, width)  # no clip, as where blocks are fewer than ranks
        rows = torch.empty(clips if ranks.leads else 0, width, device=device)
        ranks.rows_to_first(own, share.parts(clips), rows if ranks.leads else None)
    else:
        rows = own

    def check() -> None:
        fill_left_out(rows, left_out, shards.first_id(split))
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"{encoder.name}: features of split {split} are not finite, because its training diverged; train it "
                "again with a smaller optim.lr"
            )

    ranks.first(check)
    return rows


def _own_features(encoder: FrozenEncoder, loader: Batches, kind: str, pool: Pool, window: Window | None) -> Tensor:
    """(n, D) of the rank's clips, in order; NaN for those that are left out. (0, 0) where it has none."""
    own, device = loader.share.of(len(loader.shards.clips_in(loader.split))), loader.device
    first, rows = loader.shards.first_id(loader.split) + own.start, torch.empty(0, 0, device=device)
    with progress_bar() as progress:
        total = -(-len(loader.index.lines) // loader.own_batch_size)
        task = progress.add_task(f"features of {loader.split}", total=total, note="")
        for batch in loader.whole_clips():
            assert batch.frame_counts is not None
            log_mel, counts = batch.views[0], batch.frame_counts
            if window is not None:
                log_mel, counts = window.cut(log_mel, counts, batch.clip_ids, encoder.config)
            features = encoder.features(log_mel, counts, kind, pool)
            if not len(rows):
                rows = torch.full((own.stop - own.start, features.shape[1]), torch.nan, device=device)
            rows[batch.clip_ids - first] = features
            progress.advance(task)
    return rows


def eval_features(
    encoder: FrozenEncoder,
    config: Config,
    shards: ShardSet,
    splits: Sequence[str],
    device: torch.device,
    left_out: Sequence[int] = (),
    read_again: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Split -> features (N, D) by the `eval` settings of `config`; only clips of train may be
    `left_out`: each has the row of another clip, which must not be scored. `read_again`: as of extract. Of several
    `ranks` rank 0 alone gets rows.

    With `eval.encoder_mode` = train the train split goes first, through the encoder in train mode, on rank 0; the
    others then go through it in eval mode, with the resulting BatchNorm statistics. `encoder` itself is not changed.
    """
    settings = config.eval
    kind = settings.features if settings.encoder == "full" else "block3"
    window = eval_window(config, encoder.config, shards)
    if settings.encoder_mode == "train" and encoder.network is not None:
        encoder = replace(encoder, network=copy.deepcopy(encoder.network))
        torch.manual_seed(config.train.seed)
    found = dict[str, Tensor]()

    def extracted(split: str, ranks: Ranks) -> None:
        missing, store, pool = left_out if split == "train" else (), config.data.store, settings.pool
        found[split] = extract(
            encoder, shards, split, kind, pool, device, store, read_again, window, left_out=missing, ranks=ranks
        )

    for split in sorted(splits, key=lambda name: name != "train"):
        in_order = encoder.network is not None and settings.encoder_mode == "train" and split == "train"
        if encoder.network is not None:
            encoder.network.train(in_order)
        if in_order and ranks.together:
            assert encoder.network is not None
            ranks.first(lambda: extracted("train", ALONE))
            found.setdefault("train", torch.empty(0, 0, device=device))
            first_buffers(encoder.network, ranks)
        else:
            extracted(split, ranks)
    return found
