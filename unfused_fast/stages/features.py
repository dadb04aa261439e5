"""Features of whole clips from a frozen encoder.   N clips of a split, B clips in a batch, F mel bins, T frames, D
features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from unfused_fast.config import BASELINES, Config, Store, from_flat
from unfused_fast.console import console, progress_bar
from unfused_fast.data import Loader, Window, eval_window, fill_left_out, final_statistics, placed
from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.methods import method_class
from unfused_fast.models import EncoderOutput, Pool, block_features, build_encoder, pool_time
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import (
    WEIGHTS,
    load_checkpoint,
    prepare_for,
    read_description,
    read_model_folder,
    refuse_misfit,
)

BEST = "best."
"""Prefix of the tensors of a fine-tuned network after the epoch that selection chose."""
Network = TypeVar("Network", bound=torch.nn.Module)
Kind = Literal["encoder", "projector", "block1", "block2", "block3"]
WHOLE_CLIP_BATCH = 32
"""Whole clips per batch. Ours: 32 clips of 10 s keep the first convolution's maps under a gigabyte in float32."""


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

    def features(self, log_mel: Tensor, frame_counts: Tensor, kind: Kind, pool: Pool) -> Tensor:
        """(B, 1, F, T) normalised, (B,) valid frames -> (B, D) float32, pooled over the whole clip."""
        if self.network is None:
            return log_mel_statistics_features(log_mel, frame_counts)
        output: EncoderOutput = self.network(log_mel, frame_counts)
        if kind in ("encoder", "projector"):
            pooled = pool_time(output.frames, output.frame_counts, pool)
            if kind == "encoder":
                return pooled.float()
            if self.projector is None:
                raise UserError(
                    f"{self.name}: it has no projection head (only pre-training runs do); use pseudo.feature=encoder"
                )
            return torch.as_tensor(self.projector(pooled)).float()
        block = int(kind[-1]) - 1
        counts = frame_counts * output.blocks[block].shape[-1] // log_mel.shape[-1]
        return block_features(output.blocks[block], counts, pool).float()


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


def load_encoder(run: Path, device: torch.device) -> FrozenEncoder:
    """The encoder (and the projection head, where there is one) of a finished pre-training or distillation run, that of
    the chosen epoch of a fine-tuning run, or the encoder of a model folder (training/model_folder.py).
    """
    recorded = read_description(run)
    if recorded is None:
        raise UserError(
            f"{run}: not a run of unfused-fast (no config.json); give a directory that train pretrain, distill or "
            "finetune wrote"
        )
    if (run / WEIGHTS).is_file():
        config, encoder = read_model_folder(run, recorded)
        return FrozenEncoder(str(run), config, recorded["log_mel"], prepare_for(encoder, device).eval(), None)
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
    statistics = final_statistics(recorded["log_mel"], tensors)
    return FrozenEncoder(str(run), config, statistics, prepare_for(network, device).eval(), projector)


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
    return baseline_encoder(name, config, device) if name in BASELINES else load_encoder(Path(name), device)


@torch.no_grad()
@ieee_float32()
def extract(
    encoder: FrozenEncoder,
    shards: ShardSet,
    split: str,
    kind: Kind,
    pool: Pool,
    device: torch.device,
    store: Store = "stream",
    read_again: bool = False,
    window: Window | None = None,
    left_out: Sequence[int] = (),
) -> Tensor:
    """(N, D) float32 on the device: row i is the i-th clip of the split in the clips table, each clip once: whole, or a
    `window` of it. A `left_out` clip gets the row of another.

    Ours: in float32 whatever the training used, so that a clip's features do not depend on the device's precision. With
    `store` auto the log-mels come from the shards where there is no cache yet: one pass does not justify making one,
    unless the same command reads the split again (`read_again`).
    """
    stream = Loader(
        shards,
        split,
        encoder.config,
        device=device,
        batch_size=WHOLE_CLIP_BATCH,
        statistics=encoder.log_mel,
        left_out=left_out,
    )
    loader = placed(stream, store, single_pass=not read_again)
    first, clips = shards.first_id(split), shards.manifest.splits[split].clips
    rows: Tensor | None = None
    with progress_bar() as progress:
        task = progress.add_task(f"features of {split}", total=-(-loader.clips // loader.batch_size), note="")
        for batch in loader.whole_clips():
            assert batch.frame_counts is not None
            log_mel, counts = batch.views[0], batch.frame_counts
            if window is not None:
                log_mel, counts = window.cut(log_mel, counts, batch.clip_ids, encoder.config)
            features = encoder.features(log_mel, counts, kind, pool)
            if rows is None:
                rows = torch.full((clips, features.shape[1]), torch.nan, device=device)
            rows[batch.clip_ids - first] = features
            progress.advance(task)
    if rows is None:
        raise UserError(f"{shards.directory}: split {split} holds no clips; pack the set again")
    fill_left_out(rows, left_out, first)
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            f"{encoder.name}: features of split {split} are not finite, because its training diverged; train it again "
            "with a smaller optim.lr"
        )
    return rows


def eval_features(
    encoder: FrozenEncoder,
    config: Config,
    shards: ShardSet,
    splits: Sequence[str],
    device: torch.device,
    left_out: Sequence[int] = (),
    read_again: bool = False,
) -> dict[str, Tensor]:
    """Split -> features (N, D) by the `eval` settings of `config`; only clips of train may be
    `left_out`: each has the row of another clip, which must not be scored. `read_again`: as of extract.

    With `eval.encoder_mode` = train the train split goes first, through the encoder in train mode; the others then go
    through it in eval mode, with the resulting BatchNorm statistics. `encoder` itself is not changed.
    """
    settings = config.eval
    kind: Kind = "encoder" if settings.encoder == "full" else "block3"
    window = eval_window(config, encoder.config, shards)
    if settings.encoder_mode == "train" and encoder.network is not None:
        encoder = replace(encoder, network=copy.deepcopy(encoder.network))
        torch.manual_seed(config.train.seed)
    found = dict[str, Tensor]()
    for split in sorted(splits, key=lambda name: name != "train"):
        if encoder.network is not None:
            encoder.network.train(settings.encoder_mode == "train" and split == "train")
        found[split] = extract(
            encoder,
            shards,
            split,
            kind,
            settings.pool,
            device,
            store=config.data.store,
            read_again=read_again,
            window=window,
            left_out=left_out if split == "train" else (),
        )
    return found


def start_from(network: torch.nn.Module, teacher: FrozenEncoder) -> None:
    """Copies the teacher's weights to an encoder, `distill.init` = teacher. Raises UserError where sizes differ."""
    assert teacher.network is not None
    own, theirs = (
        {(name, tensor.shape) for name, tensor in of.state_dict().items()} for of in (network, teacher.network)
    )
    if other := sorted({name for name, _ in own ^ theirs}):
        raise UserError(
            f"distill.init = teacher, but {teacher.name} does not match f_sd in its tensors ({len(other)}, "
            f"such as {other[0]}); give f_sd the teacher's model settings, or use distill.init=random"
        )
    network.load_state_dict(teacher.network.state_dict())
