"""Stage 3, end to end: the encoder is trained together with a linear head on labelled clips.

B clips in a batch, N labelled train clips, C classes. Crops are random in training, clips are
whole when they are judged; validation picks the epoch, and test is read once. Source: DECAR section 5, setting 2, and
Table 2. Labels, few labels and held-out clips are those of protocol.py, as in `evaluate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfused_fast.clustering import Background
from unfused_fast.config import Config, with_values
from unfused_fast.console import console
from unfused_fast.data import GIVEN, Augmenter, Batch, Batches, Loader, placed, set_statistics
from unfused_fast.errors import UserError
from unfused_fast.json_files import is_number
from unfused_fast.models import FinetuneNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.clip_scores import JudgedClips
from unfused_fast.stages.features import BEST, FrozenEncoder, baseline_encoder, load_encoder
from unfused_fast.stages.labels import LabelledClips, labelled_clips
from unfused_fast.stages.linear_heads import draw_confusion, head_losses, holdout_input, say_heard, score
from unfused_fast.stages.protocol import Round, counts, split_round
from unfused_fast.training import (
    Options,
    PartTimer,
    Position,
    Progress,
    Run,
    autocast,
    build_optimizer,
    collect,
    compiled,
    learning_rate,
    precision,
    prepare_for,
    progress_of,
    refuse_misfit,
    resolve_batch_size,
    restore,
    run_epochs,
    save_checkpoint,
    seed_everything,
    set_rate,
    to_host,
    train_clips,
)


class Finetuning:
    """The state that lives through the epochs."""

    def __init__(
        self,
        config: Config,
        shards: ShardSet,
        clips: LabelledClips,
        part: Round,
        frozen: FrozenEncoder,
        options: Options,
    ) -> None:
        self.config, self.options, device = config, options, options.device
        seed_everything(config.train.seed)
        self.statistics = frozen.log_mel or set_statistics(shards, config.frontend)
        ids, self.by = clips.clip_ids[part.train], "test" if config.eval.select == "best_test" else "valid"
        self.digest = hashlib.sha256(ids.tobytes()).hexdigest()
        self.batch_size = resolve_batch_size(config, len(ids))
        stream = Loader(
            shards,
            "train",
            config,
            device=device,
            batch_size=self.batch_size,
            statistics=self.statistics,
            only=ids,
        )
        self.loader: Batches = placed(stream)
        self._row_of = torch.zeros(shards.clips.num_rows, dtype=torch.int64, device=device)
        self._row_of[torch.from_numpy(ids).to(device)] = torch.arange(len(ids), device=device)
        self._targets = torch.from_numpy(clips.targets[part.train]).to(device)
        rows = part.test if self.by == "test" else part.valid
        self.judged_by = JudgedClips(config, shards, clips, rows, self.statistics, device, once=False)
        network = FinetuneNetwork(config, len(clips.label_names))
        assert frozen.network is not None
        network.encoder.load_state_dict(frozen.network.state_dict())
        self.network = prepare_for(network, device)
        self.forward = compiled(self.network, options)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.augment = Augmenter(config, len(ids), device) if config.finetune.augment else None
        self.timer = PartTimer(device)
        self.step = 0
        self.judged: list[float] = []
        """Metric after each epoch."""
        self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        """The network after the chosen epoch; before the first has ended, as it began."""
        self._saving = Background[Path]("checkpoint")

    @property
    def chosen_epoch(self) -> int:
        """The first whose metric is the largest so far."""
        return 1 + self.judged.index(max(self.judged))

    @property
    def finished(self) -> bool:
        """No early stop: the chosen epoch is the same as with one. Source: DECAR section 5 (at most 50 epochs)."""
        return False

    def begin_epoch(self, epoch: int, run: Run) -> dict[str, Any]:
        """Nothing changes between epochs."""
        self.network.train()
        return {}

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Every labelled clip once, from a batch on."""
        return self.loader.epoch(epoch, views=1, masks=self.augment is not None, first_batch=first_batch)

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """One step on one crop of each clip: returns the detached loss."""
        (view,) = batch.views
        if self.augment is not None:
            with self.timer.part("augment"):
                (view,) = self.augment(batch.clip_ids, batch.views, epoch)
        with self.timer.part("forward"):
            with autocast(self.config, self.options.device):
                logits = self.forward(view)
            loss = head_losses(logits[None], self._targets[self._row_of[batch.clip_ids]]).mean()
        with self.timer.part("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with self.timer.part("optimizer"):
            set_rate(self.optimizer, self.rate(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def tail(self, batch: Batch, epoch: int) -> None:
        """The partial batch waits for another epoch's order: a BatchNorm over a few clips would mislead."""

    def end_epoch(self) -> dict[str, Any]:
        """Judges the network, and keeps it where it is better than after every epoch before."""
        with self.timer.part("judge"):
            self.judged.append(self.judged_by.metric(self.judged_by.scores(self.network)))
            if self.chosen_epoch == len(self.judged):
                self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return {self.by: self.judged[-1]}

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config.optim, step, self.loader.full_batches, self.config.train.epochs)

    def save(self, run: Run, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Writes the checkpoint, which holds the network of the chosen epoch too."""
        self.wait()
        own = collect(self.network, self.optimizer) | {f"{BEST}{name}": tensor for name, tensor in self.best.items()}
        if self.augment is not None:
            own |= self.augment.state()
        if self.statistics is not None:
            own[GIVEN] = torch.tensor([self.statistics["mean"], self.statistics["std"]], dtype=torch.float64)
        copied = to_host({**own, **tensors})
        state = {"step": self.step, "judged": list(self.judged), "clips": self.digest, "order": run.order, **notes}
        self._saving.start(lambda: save_checkpoint(run.checkpoints, position, copied(), state))

    def wait(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""
        self._saving.wait()

    def fault(self, state: dict[str, Any]) -> str | None:
        """Why a checkpoint cannot be gone on from, or None."""
        judged = state.get("judged")
        if not isinstance(judged, list) or len(judged) != state["epoch"] or not all(map(is_number, judged)):
            return f"epoch {state['epoch']}: its judged are not one number an epoch"
        if state.get("batch", 0) and state.get("clips") != self.digest:
            return f"epoch {state['epoch']}: it lies within an epoch of other clips"
        return None

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
        """Restores all state; returns how far it was."""
        restore(tensors, self.network, self.optimizer)
        best = {name.removeprefix(BEST): tensor for name, tensor in tensors.items() if name.startswith(BEST)}
        refuse_misfit(self.best, best)
        self.best = {name: tensor.to(self.best[name].device) for name, tensor in best.items()}
        if self.augment is not None:
            self.augment.load_state(tensors)
        self.step, self.judged = state["step"], list(state["judged"])
        return progress_of(tensors, state)

    def choose(self) -> FinetuneNetwork:
        """The network of the chosen epoch, once training is over."""
        self.network.load_state_dict(self.best)
        return self.network


def finetune(
    config: Config, shards: ShardSet, encoder: str, out: Path, options: Options, holdout: float | None = None
) -> dict[str, Any]:
    """Fine-tunes `encoder` (a run directory, a model folder or `random`) on a labelled set into run directory `out`;
    returns result.json's content.

    Front end, network and normalisation are the encoder's; the rest of `config` holds. Raises UserError for what the
    user can mend, Interrupted after Ctrl-C (what was done is saved).

    Args:
        holdout: share of the train recordings that are the test, of a set without one.
    """
    train_clips(shards)
    if encoder == "logmel":
        raise UserError("--encoder logmel: it has nothing to train; use a run directory or random, or train linear")
    if config.eval.encoder != "full":
        raise UserError(f"eval.encoder = {config.eval.encoder}: train finetune trains the whole encoder; leave it full")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: train finetune takes a batch whole; use a smaller --set train.batch_size")
    clips, part = split_round(config, shards, labelled_clips(shards, by_folds=False, tested=False, holdout=holdout))
    say_heard([encoder], shards, clips)
    random = encoder == "random"
    frozen = (
        baseline_encoder(encoder, config, options.device) if random else load_encoder(Path(encoder), options.device)
    )
    config = config_of(config, frozen)
    with Run(out, "finetune", config, shards, options, encoder=encoder, **holdout_input(holdout)) as run:
        result = run.result() or _trained(run, config, shards, encoder, clips, part, frozen, options)
        draw_confusion(run.out, result)
        return result


def config_of(config: Config, frozen: FrozenEncoder) -> Config:
    """`config` with what belongs to the encoder: its front end, its network but for the dropout, how log-mels are
    normalised. What a running norm ended with is fixed now, as for frozen features.
    """
    own = frozen.config
    model = replace(own.model, dropout=config.model.dropout)
    norm = "dataset" if own.data.norm == "running" else own.data.norm
    made = replace(config, frontend=own.frontend, model=model, data=replace(config.data, norm=norm))
    return with_values(made, {})  # which checks that the parts go together


def _trained(
    run: Run,
    config: Config,
    shards: ShardSet,
    encoder: str,
    clips: LabelledClips,
    part: Round,
    frozen: FrozenEncoder,
    options: Options,
) -> dict[str, Any]:
    state = Finetuning(config, shards, clips, part, frozen, options)
    progress = state.load(*run.load(state.fault)) if run.resumed else None
    run.start()
    console.print(
        f"finetune: {len(part.train)} train clips, batch {state.batch_size}, {len(clips.label_names)} classes, "
        f"{config.train.epochs} epochs, on {options.device} in {precision(config, options.device)}"
    )
    with run.signals():
        trained = run_epochs(state, run, progress)
    return run.finish({**_result(state, shards, encoder, clips, part), **trained})


def _result(state: Finetuning, shards: ShardSet, encoder: str, clips: LabelledClips, part: Round) -> dict[str, Any]:
    """What the network of the chosen epoch reaches, as train linear says it; test is read here, and only here unless
    the epoch is chosen by it.
    """
    config, device = state.config, state.options.device
    network, names = state.choose(), clips.label_names
    judged = {state.by: state.judged_by}
    for name, rows in (("valid", part.valid), ("test", part.test)):
        if len(rows) and name not in judged:
            judged[name] = JudgedClips(config, shards, clips, rows, state.statistics, device, once=True)
    scores = {name: one.scores(network) for name, one in judged.items()}
    metrics = {name: round(judged[name].metric(found), 6) for name, found in scores.items()}
    result: dict[str, Any] = {
        "task": shards.directory.name,
        "encoder": encoder,
        "metric": "mAP" if clips.multi_label else "accuracy",
        "valid": metrics["valid"],
        "test": metrics.get("test"),
        "select": config.eval.select,
        "chosen_epoch": state.chosen_epoch,
        "lr": config.optim.lr,
        "classes": len(names),
        "label_names": list(names),
        **counts(clips, part),
        "label_fraction": config.eval.label_fraction,
        "features": network.encoder.dim,
        "batch_size": state.batch_size,
    }
    if clips.multi_label:
        return result
    found = {
        name: score(
            torch.from_numpy(clips.targets[judged[name].rows]), torch.from_numpy(values.argmax(axis=1)), len(names)
        )
        for name, values in scores.items()
    }
    f1 = {name: found[name].macro_f1 if name in found else None for name in ("valid", "test")}
    return {**result, "macro_f1": f1, "confusion": found["test" if "test" in found else "valid"].confusion}
