"""Stage 3, end to end: the encoder is trained together with a linear head on labelled clips.

B clips in a batch, N labelled train clips, C classes. Crops are random in training, clips are whole when they are
scored; validation picks the epoch, and test is read once. Source: DECAR section 5, setting 2, and Table 2. Labels, few
labels and held-out clips come from protocol.py, as in `evaluate`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unfused_fast.config import Config, with_values
from unfused_fast.console import console, counted
from unfused_fast.data import Loader, placed, set_statistics
from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.methods import Log, Trainable
from unfused_fast.models import FinetuneNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import WHOLE_CLIP_BATCH, FrozenEncoder, encoder_of
from unfused_fast.stages.labels import LabelledClips, Rows
from unfused_fast.stages.linear_heads import draw_confusion, head_losses
from unfused_fast.stages.metrics import metric_of
from unfused_fast.stages.protocol import Round, holdout_input, report_test_in_training, result_of, split_round
from unfused_fast.training import Options, Run, Trainer, encoder_name, precision, resolve_batch_size


class ScoredClips:
    """Recordings of one split, to score a network on: a recording's scores are the mean over its whole clips."""

    def __init__(
        self,
        config: Config,
        shards: ShardSet,
        clips: LabelledClips,
        rows: Rows,
        statistics: Mapping[str, float] | None,
        device: torch.device,
        once: bool,
    ) -> None:
        """Args:
        rows: (n,) of `clips`, all of one split, in order.
        once: they are read only once, so no cache is made for them.
        """
        self.clips, self.statistics, self._recordings = clips, statistics, clips.recordings(rows)
        self.rows = self._recordings.rows
        """(R,) of `clips`, one per recording."""
        ids = clips.clip_ids[rows]
        stream = Loader(
            shards,
            str(shards.clips["split"][int(ids[0])]),
            config,
            device=device,
            batch_size=WHOLE_CLIP_BATCH,
            statistics=statistics,
            only=ids,
        )
        self._loader, self._ids = placed(stream, single_pass=once), torch.from_numpy(ids).to(device)

    @torch.no_grad()
    @ieee_float32()
    def scores(self, network: FinetuneNetwork) -> NDArray[np.float32]:
        """(R, C) logits, in float32 whatever the training used, as features.extract; leaves the network in eval
        mode. The head is linear: the mean of the clips' logits is the logits of their mean features.
        """
        network.eval()
        found = torch.full((self._loader.clips, len(self.clips.label_names)), torch.nan, device=self._loader.device)
        for batch in self._loader.whole_clips():
            found[torch.searchsorted(self._ids, batch.clip_ids)] = network(batch.views[0], batch.frame_counts)
        return self._recordings.mean(found).cpu().numpy()

    def metric(self, network: FinetuneNetwork) -> float:
        """Accuracy or mAP of the network."""
        return metric_of(self.clips, self.rows, self.scores(network))


class Finetuning(Trainable):
    """The network, its labels, and a copy of the network after the best epoch."""

    network: FinetuneNetwork
    best: FinetuneNetwork

    def __init__(
        self, frozen: FrozenEncoder, config: Config, targets: Tensor, clip_ids: Tensor, scored: ScoredClips
    ) -> None:
        """Args:
        targets: (N,) int64, or (N, C) bool of a multi-label set, of the train clips (N,), in order of their ids.
        scored: recordings that choose the epoch.
        """
        assert frozen.network is not None
        network = FinetuneNetwork(config, len(scored.clips.label_names))
        network.encoder.load_state_dict(frozen.network.state_dict())
        super().__init__(network)
        self.scored, self.by = scored, "test" if config.eval.select == "best_test" else "valid"
        self._targets, self._ids = targets, clip_ids
        self._digest = hashlib.sha256(clip_ids.cpu().numpy().tobytes()).hexdigest()
        self.best = copy.deepcopy(network).requires_grad_(False)
        """Its state after the chosen epoch; during the first epoch, its initial state."""
        self.metrics: list[float] = []
        """After each epoch."""
        self.norm = nn.Module()
        """Log-mel statistics in a checkpoint; see GIVEN in data/augment.py."""
        if scored.statistics is not None:
            given = [scored.statistics["mean"], scored.statistics["std"]]
            self.norm.register_buffer("given", torch.tensor(given, dtype=torch.float64))

    @property
    def chosen_epoch(self) -> int:
        """The first epoch with the largest metric so far."""
        return 1 + self.metrics.index(max(self.metrics))

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """The loss on one crop of each clip."""
        with self.part("forward"):
            targets = self._targets[torch.searchsorted(self._ids, clip_ids)]
            return head_losses(self.run(*views)[None], targets).mean()

    def end_epoch(self) -> Log:
        """Scores the network, and copies it where it is better than after every earlier epoch."""
        with self.part("judge"):
            self.metrics.append(self.scored.metric(self.network))
            if self.chosen_epoch == len(self.metrics):
                self.best.load_state_dict(self.network.state_dict())
        return {self.by: self.metrics[-1]}

    def summary(self, log: Log) -> str:
        return f"  {self.by} {log[self.by]:.3f}"

    def notes(self) -> dict[str, Any]:
        """The metrics, and the clips that they are for."""
        return {"judged": self.metrics, "clips": self._digest}

    def load_notes(self, notes: dict[str, Any]) -> None:
        self.metrics = list(notes["judged"])

    def fault(self, notes: dict[str, Any]) -> str | None:
        """Different clips within an epoch."""
        if notes["batch"] and notes["clips"] != self._digest:
            return f"epoch {notes['epoch']}: it was saved within an epoch with different clips"
        return None


def finetune(
    config: Config, shards: ShardSet, encoder: str, out: Path, options: Options, holdout: float | None = None
) -> dict[str, Any]:
    """Fine-tunes `encoder` (what `load` takes, or `random`) on a labelled set into run directory `out`; returns
    result.json's content.

    Front end, network and normalisation come from the encoder, everything else from `config`. Raises UserError for
    errors that the user can fix, Interrupted after Ctrl-C (finished work is saved).

    Args:
        holdout: share of the train recordings held out as test, for a set without a test split.
    """
    if encoder == "logmel":
        raise UserError("--encoder logmel: it has nothing to train; use a run directory or random, or train linear")
    if config.eval.encoder != "full":
        raise UserError(f"eval.encoder = {config.eval.encoder}: train finetune trains the whole encoder; keep it full")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: train finetune does not split a batch; use a smaller --set train.batch_size")
    clips, part = split_round(config, shards, holdout)
    encoder = options.ranks.first(lambda: encoder_name(encoder))
    report_test_in_training([encoder], shards, clips)
    frozen = encoder_of(encoder, config, options.device)
    config = config_of(config, frozen)
    with Run(out, "finetune", config, shards, options, encoder=encoder, **holdout_input(holdout)) as run:
        result = run.result()
        if result is None:
            trained, found = _tuned(run, config, shards, clips, part, frozen, options)
            result = run.finish({**result_of(config, shards, encoder, clips, part, found), **trained})
        draw_confusion(run.out, result)
        return result


def config_of(config: Config, frozen: FrozenEncoder) -> Config:
    """`config` with the encoder's settings: front end, network except dropout, normalisation of log-mels. Statistics of
    a running norm are fixed now, as for frozen features.
    """
    own = frozen.config
    model = replace(own.model, dropout=config.model.dropout)
    norm = "dataset" if own.data.norm == "running" else own.data.norm
    made = replace(config, frontend=own.frontend, model=model, data=replace(config.data, norm=norm))
    return with_values(made, {})  # checks that the parts are consistent


def _tuned(
    run: Run,
    config: Config,
    shards: ShardSet,
    clips: LabelledClips,
    part: Round,
    frozen: FrozenEncoder,
    options: Options,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """What the trained run says, and the scores of valid and test by the network of the chosen epoch."""
    statistics, device = frozen.log_mel or set_statistics(shards, config.frontend), options.device
    parts = {name: rows for name, rows in (("valid", part.valid), ("test", part.test)) if len(rows)}

    def scored(name: str, once: bool) -> ScoredClips:
        return ScoredClips(config, shards, clips, parts[name], statistics, device, once=once)

    torch.manual_seed(config.train.seed)
    chooser = scored("test" if config.eval.select == "best_test" else "valid", once=False)
    ids, targets = (torch.from_numpy(found[part.train]).to(device) for found in (clips.clip_ids, clips.targets))
    task, size = Finetuning(frozen, config, targets, ids, chooser), resolve_batch_size(config, len(ids))
    stream = Loader(
        shards, "train", config, device=device, batch_size=size, statistics=statistics, only=clips.clip_ids[part.train]
    )
    trainer = Trainer(task, stream, config, options, run, augment=config.finetune.augment)
    trainer.start()
    console.print(
        f"finetune: {len(ids)} train clips, batch {size}, {len(clips.label_names)} classes, "
        f"{counted(config.train.epochs, 'epoch')}, on {device} in {precision(config, device)}"
    )
    trained = trainer.fit()
    task.network.load_state_dict(task.best.state_dict())
    # test is read only here, unless it chose the epoch
    found = {name: (chooser if name == task.by else scored(name, once=True)).scores(task.network) for name in parts}
    facts = {"chosen_epoch": task.chosen_epoch, "lr": config.optim.lr, "features": task.network.encoder.dim}
    return {**facts, **trained}, found
