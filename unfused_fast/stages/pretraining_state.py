"""What lives through the epochs of stage 1: network, bank, clusters; its batches, steps and saves.

N clips of the train split, B clips in a batch, K clusters, P size of a projection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unfused_fast.clustering import (
    BANK,
    Background,
    Clustering,
    Collapse,
    DamagedBank,
    MemoryBank,
    cluster_rows,
    cluster_sizes,
    normalised_mutual_information,
    row_spread,
    stalled,
)
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import Augmenter, Batch, Batches, SkippedClips, key
from unfused_fast.distributed import first_buffers, share_layers, sum_gradients
from unfused_fast.models import PretrainNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.further_heads import FurtherHeads
from unfused_fast.stages.prototypes import build_predictor, resolve_k
from unfused_fast.training import (
    Interrupted,
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
    parts_of,
    plot_cluster_sizes,
    prepare_for,
    progress_of,
    resolve_batch_size,
    restore,
    save_checkpoint,
    seed_everything,
    set_rate,
    to_host,
    train_clips,
    train_loader,
)

INIT_EPOCH = 0
"""Views of the passes that fill the bank are those of epoch 0; training epochs count from 1."""
HEAD_STREAM = 1
"""Tells the seed of a linear prediction head from that of the clustering before it."""
PLOT_SECONDS = 60
"""Least time from one picture of the clusters to the next. Ours: drawing takes as long as a small epoch."""


class Pretraining:
    """The state that lives through the epochs of stage 1."""

    def __init__(self, config: Config, shards: ShardSet, options: Options) -> None:
        self.config, self.options, device = config, options, options.device
        seed_everything(config.train.seed)
        clips = train_clips(shards)
        self.k, self.batch_size = resolve_k(config, clips), resolve_batch_size(config, clips)
        self.ranks = options.ranks
        skipped = SkippedClips(options.skip_bad, self.ranks)
        self.stream = train_loader(config, shards, options, self.batch_size, skipped)
        self.loader: Batches = self.stream
        self.network = prepare_for(share_layers(PretrainNetwork(config), self.ranks, config.model.sync_bn), device)
        self.forward = compiled(self.network, options)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.augment = Augmenter(config, clips, device, self.ranks)
        self.bank = MemoryBank(clips, config.model.proj_dim, shards.first_id("train"), device, config.bank.dtype)
        self.predictor, self.heads = build_predictor(config, device), FurtherHeads(config, device)
        self.assignments: Tensor | None = None
        self.nmis: list[float] = []
        self.collapse = Collapse(config)
        self.timer = PartTimer(device)
        self.step = 0
        self._drawn, self._filling = -math.inf, False
        self._saving = Background[Path]("checkpoint")

    @property
    def finished(self) -> bool:
        """Whether the clusterings have stopped to agree better: then training stops before `train.epochs`."""
        return stalled(self.nmis, self.config.train.patience, self.config.cluster.every_epochs)

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Clips of an epoch from a batch on: each once, or drawn uniformly over the clusters; two views where one feeds
        the bank.
        """
        assert self.assignments is not None
        clusters = self.assignments.cpu().numpy() if self.config.data.sampler == "uniform_clusters" else None
        views = 2 if self.config.bank.fill == "training" else 1
        return self.loader.epoch(epoch, views, clusters=clusters, first_batch=first_batch)

    def _fill_bank(self, run: Run) -> None:
        """A pass of one view of every clip through the network: the isolated assignment phase of DECAR-v2's first
        epoch, or (`bank.fill` = pass) the first of DECAR-v1's two passes, over the same crops each epoch.
        """
        clean = self.config.bank.fill == "pass"
        self.network.train(not clean and self.config.bank.init_mode == "train")
        self.bank.start_epoch()
        self._filling = True
        with self.timer.part("bank pass"):
            for number, batch in enumerate(self.loader.epoch(INIT_EPOCH, views=1, masks=not clean)):
                self._write_bank(batch, INIT_EPOCH, self._clips(number), not clean)
                (run.stopping,) = self.ranks.agree(run.stopping)
                if run.stopping:
                    raise Interrupted(f"{run.out}: stopped while the memory bank was filled")
        self.bank.check_cover()

    def begin_epoch(self, epoch: int, run: Run) -> dict[str, Any]:
        """Assignment phase, then the bank is ready to be written again."""
        clustered: dict[str, Any] = {}
        if self.assignments is None or (epoch - 1) % self.config.cluster.every_epochs == 0:
            if self.assignments is None or self.config.bank.fill == "pass":
                self._fill_bank(run)
            with self.timer.part("clustering"):
                clustered = self._cluster(epoch)
            self._filling = False
        self.network.train()
        self.bank.start_epoch()
        return {"k": self.k, "ln_k": round(math.log(self.k), 4), **clustered}

    def _cluster(self, epoch: int) -> dict[str, Any]:
        """Clusters the bank in place and re-makes what predicts the clusters; changes nothing else if Collapsed."""
        began, seed = time.perf_counter(), self.config.train.seed
        start = self.predictor.tensors().get("prototypes") if self.assignments is not None else None

        def cluster(k: int, seed: int, start: Tensor | None, previous: Tensor | None) -> Clustering:
            return cluster_rows(self.bank.rows, k, self.config, seed, start, previous, self.ranks)

        found = cluster(self.k, key(seed, epoch) >> 1, start, self.assignments)
        sizes, spread = cluster_sizes(found.counts), row_spread(self.bank.rows)
        self.collapse.check(sizes.largest_share, len(found.counts), epoch)
        self.collapse.check_spread(spread.mean_direction, epoch)
        self.heads.cluster(cluster, seed, epoch)
        self.predictor.remake(found, key(seed, epoch, HEAD_STREAM) >> 1)
        previous, self.assignments, self.k = self.assignments, found.assignments, len(found.counts)
        if previous is not None:
            self.nmis.append(normalised_mutual_information(previous, found.assignments))
        return {
            "nmi": None if previous is None else round(self.nmis[-1], 4),
            "empty_clusters": sizes.empty,
            "perplexity": round(sizes.perplexity, 2),
            "largest_cluster": round(sizes.largest_share, 4),
            "mean_cosine": round(float(found.mean_cosine), 4),
            **{name: round(value, 4) for name, value in spread._asdict().items()},
            "cluster_seconds": round(time.perf_counter() - began, 4),  # the objective was read, so all is done
        }

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """Training phase, one step: returns the detached loss. The last view feeds the loss, one before it the bank."""
        assert self.assignments is not None
        with self.timer.part("augment"):
            self.ranks.batch(self.batch_size)
            everyone = self.ranks.gather_rows(batch.clip_ids)
            *bank_views, train_view = self.augment(batch.clip_ids, batch.views, epoch, batch.counters)
        numbers, total = batch.clip_ids - self.bank.first_id, torch.zeros((), device=train_view.device)
        projected: list[list[Tensor]] = [[] for _ in bank_views]
        for rows in parts_of(self.config, self.ranks, self.batch_size):
            with self.timer.part("forward bank view"), torch.no_grad(), autocast(self.config, self.options.device):
                for found, view in zip(projected, bank_views, strict=True):
                    found.append(self.forward(view[rows]))
            with self.timer.part("forward train view"):
                with autocast(self.config, self.options.device):
                    predicted = self.forward(train_view[rows])
                # p = softmax(scores), loss = -sum q log p with q the assignment (paper section 3; DECAR Eq. 2); in
                # float32, and of all clips of the batch the mean
                first = cross_entropy(self.predictor.scores(predicted), self.assignments[numbers[rows]])
                loss = self.heads.mean_loss(first, predicted, numbers[rows]) * (len(predicted) / self.batch_size)
            with self.timer.part("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        with self.timer.part("optimizer"):
            trained = [*self.network.parameters(), *self.predictor.parameters(), *self.heads.parameters()]
            total = sum_gradients(trained, total, self.ranks, self.config.train.gradients)
            set_rate(self.optimizer, self.rate(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.predictor.step()
            self.heads.step()
            if not self.config.model.sync_bn:
                first_buffers(self.network, self.ranks)
        with self.timer.part("bank"):
            self.ranks.batch(self.batch_size)
            for found in projected:
                self.bank.write(everyone, self.ranks.gather_rows(torch.cat(found)))
        self.step += 1
        return total

    def tail(self, batch: Batch, epoch: int) -> None:
        """The partial batch takes no step; where training fills the bank it does so too, in eval mode."""
        if self.config.bank.fill == "training":
            self.network.eval()
            self._write_bank(batch, epoch, self._clips(self.loader.full_batches))
            self.network.train()

    def _clips(self, number: int) -> int:
        """Clips of an epoch's batch on all ranks."""
        return min(self.batch_size, self.loader.clips - number * self.batch_size)

    @torch.no_grad()
    def _write_bank(self, batch: Batch, epoch: int, clips: int, augmented: bool = True) -> None:
        self.ranks.batch(clips)
        (view,) = self.augment(batch.clip_ids, batch.views[:1], epoch) if augmented else batch.views
        forward = self.forward if clips == self.batch_size else self.network  # no graph for the last, partial batch
        with autocast(self.config, self.options.device):
            projections = forward(view)
        self.bank.write(self.ranks.gather_rows(batch.clip_ids), self.ranks.gather_rows(projections))

    def end_epoch(self) -> None:
        """Every row of the bank was written exactly once by the epoch, where training fills it."""
        if self.config.bank.fill == "training":
            self.bank.check_cover()

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config.optim, step, self.loader.full_batches, self.config.train.epochs)

    def save(self, run: Run, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """At the end of an epoch the bank's generation and then the checkpoint that refers to it; within one, or where
        a pass over the clips has begun to fill the bank, a checkpoint that holds the bank.
        """
        assert self.assignments is not None
        if not self.ranks.leads:
            return
        self.wait()
        whole = not position.batch and not self._filling
        own = {} if whole else self.bank.tensors(self.assignments)
        where = "generation" if whole else "here"
        state = {"step": self.step, "k": self.k, "nmis": self.nmis, "bank": where, "order": run.order, **notes}
        state |= {"ranks": self.ranks.world_size, "collapsed": self.collapse.in_a_row}
        copied = to_host(
            {
                **collect(self.network, self.optimizer),
                **self.augment.state(),
                **self.predictor.tensors(),
                **self.heads.tensors(),
                **own,
                **tensors,
            }
        )

        def write() -> Path:
            return save_checkpoint(run.checkpoints, position, copied(), state)

        if not whole:
            self._saving.start(write)
            return
        self.bank.save(run.out / BANK, position.epoch, self.assignments, step=self.step, then=write)
        if time.monotonic() - self._drawn >= PLOT_SECONDS:
            self.draw(run, position.epoch)

    def wait(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""
        self._saving.wait()
        self.bank.wait()

    def draw(self, run: Run, epoch: int) -> None:
        """The sizes of the clusters as clusters.png of the run."""
        assert self.assignments is not None
        counts = torch.bincount(self.assignments, minlength=self.k).tolist()
        try:
            plot_cluster_sizes(run.out / "clusters.png", counts, f"{run.out.name}, epoch {epoch}")
        except OSError as error:
            console.print(f"not drawn: {run.out / 'clusters.png'}: {error.strerror or error}", style="yellow")
        self._drawn = time.monotonic()

    def load(self, run: Run) -> Progress:
        """Restores all state from the newest checkpoint that is sound, its bank too; returns how far it was."""
        tensors, state = run.load(
            lambda state: None if state["bank"] == "here" else self._load_bank(run.out / BANK, state["epoch"])
        )
        restore(tensors, self.network, self.optimizer)
        self.augment.load_state(tensors)
        self.predictor.load(tensors)
        self.heads.load(tensors)
        if state["bank"] == "here":
            self.assignments = self.bank.load_tensors(tensors)
        elif self.ranks.together:
            self.ranks.from_first(self.bank.rows)
            self.assignments = self.ranks.from_first(
                torch.empty_like(self.bank.writes, dtype=torch.int64) if self.assignments is None else self.assignments
            )
        self.step, self.k, self.nmis = state["step"], state["k"], state["nmis"]
        self.stream.skipped.load(state, self.stream.shards)
        self.collapse.in_a_row = state.get("collapsed", 0)  # an earlier version wrote none
        return progress_of(tensors, state)

    def _load_bank(self, directory: Path, epoch: int) -> str | None:
        """None, or why the epoch's generation cannot be used."""
        try:
            self.assignments = self.bank.load(directory, epoch)
        except DamagedBank as error:
            return error.fact
        return None
