"""Stage 1: DECAR-v2 pre-training.   N clips of the train split, B clips in a batch, K clusters, P size of a projection.

Each epoch: cluster the memory bank (assignment phase), make the centroids the frozen prototypes, predict each clip's
cluster
from one view while another view's projection goes to the bank (training phase). Source: paper section 3, part 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unfused_fast.augment import Augmenter
from unfused_fast.bank import MemoryBank
from unfused_fast.checkpoint import collect, restore, save_checkpoint
from unfused_fast.clustering import resolve_backend, spherical_kmeans
from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.loop import PartTimer, run_epochs
from unfused_fast.model import PretrainNetwork
from unfused_fast.optim import build_optimizer, learning_rate, set_rate
from unfused_fast.partitions import cluster_statistics, normalised_mutual_information
from unfused_fast.pipeline import Batch, Loader
from unfused_fast.randomness import key
from unfused_fast.run import Run
from unfused_fast.shards.table import ShardSet
from unfused_fast.training import (
    Interrupted,
    Options,
    autocast,
    compiled,
    console,
    precision,
    prepare_for,
    resolve_batch_size,
    seed_everything,
    train_clips,
)

INIT_EPOCH = 0
"""Views of the pass that first fills the bank are those of epoch 0; training epochs count from 1."""


def resolve_k(config: Config, clips: int) -> int:
    """Clusters of a run. Raises UserError for more clusters than clips."""
    wanted = config.cluster.k
    if wanted == "auto":
        found = max(2, min(512, clips // 8))
        console.print(f"cluster.k: auto is {found} for {clips} clips")
        return min(found, clips)
    if wanted > clips:
        raise UserError(
            f"cluster.k = {wanted}, but the train split has {clips} clips; "
            f"use --set cluster.k=auto, or a number up to {clips}"
        )
    return wanted


class Pretraining:
    """The state that lives through the epochs of stage 1."""

    def __init__(self, config: Config, shards: ShardSet, options: Options) -> None:
        self.config, self.options, device = config, options, options.device
        seed_everything(config.train.seed)
        clips = train_clips(shards)
        self.k, self.batch_size = resolve_k(config, clips), resolve_batch_size(config, clips)
        self.loader = Loader(shards, "train", config, device=device, batch_size=self.batch_size)
        self.network = prepare_for(PretrainNetwork(config), device)
        self.forward = compiled(self.network, options)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.augment = Augmenter(config, clips, device)
        self.bank = MemoryBank(clips, config.model.proj_dim, shards.first_id("train"), device)
        self.prototypes = torch.zeros(self.k, config.model.proj_dim, device=device)
        self.assignments: Tensor | None = None
        self.timer = PartTimer(device)
        self.step = 0

    def fill_bank(self, run: Run) -> None:
        """The isolated assignment phase of the first epoch: one view of every clip through the network."""
        self.network.train(self.config.bank.init_mode == "train")
        self.bank.start_epoch()
        for batch in self.loader.epoch(INIT_EPOCH, views=1):
            self._write_bank(batch, INIT_EPOCH)
            if run.stopping:
                raise Interrupted(f"{run.out}: stopped before the first epoch; nothing is saved yet")
        self.bank.check_cover()

    def begin_epoch(self, epoch: int) -> dict[str, Any]:
        """Assignment phase, then the bank is ready to be written again."""
        clustered: dict[str, Any] = {}
        if self.assignments is None or (epoch - 1) % self.config.cluster.every_epochs == 0:
            with self.timer.part("k-means"):
                clustered = self._cluster(epoch)
        self.network.train()
        self.bank.start_epoch()
        return {"ln_k": round(math.log(self.k), 4), **clustered}

    def _cluster(self, epoch: int) -> dict[str, Any]:
        """Spherical k-means over the bank in place; the centroids become the prototypes."""
        settings, device = self.config.cluster, self.options.device
        generator = torch.Generator(device=device).manual_seed(key(self.config.train.seed, epoch) >> 1)
        points = (
            self.bank.rows if self.config.model.l2_normalize else torch.nn.functional.normalize(self.bank.rows, dim=1)
        )
        warm = settings.init == "warm" and self.assignments is not None
        found = spherical_kmeans(
            points,
            self.k,
            iterations=settings.iterations,
            init=self.prototypes if warm else ("kmeans++" if settings.init == "kmeans++" else "random"),
            empty=settings.empty,
            n_init=settings.n_init,
            generator=generator,
            backend=settings.backend,
            previous=self.assignments if warm else None,
        )
        previous, self.assignments, self.prototypes = self.assignments, found.assignments, found.centroids
        statistics = cluster_statistics(found)
        return {
            "nmi": None if previous is None else round(normalised_mutual_information(previous, found.assignments), 4),
            "empty_clusters": statistics.empty,
            "perplexity": round(statistics.perplexity, 2),
            "largest_cluster": round(statistics.largest_share, 4),
            "mean_cosine": round(statistics.objective, 4),
        }

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """Training phase, one step: returns the detached loss. View 0 feeds the bank, view 1 the loss."""
        assert self.assignments is not None
        with self.timer.part("augment"):
            bank_view, train_view = self.augment(batch.clip_ids, batch.views, epoch)
        with self.timer.part("forward bank view"), torch.no_grad(), autocast(self.config, self.options.device):
            projections = self.forward(bank_view)
        with self.timer.part("forward train view"):
            with autocast(self.config, self.options.device):
                predicted = self.forward(train_view)
            # p = softmax(z C / T), loss = -sum q log p with q the assignment (paper section 3); in float32
            scores = predicted @ self.prototypes.T / self.config.loss.temperature
            loss = cross_entropy(scores, self.assignments[batch.clip_ids - self.bank.first_id])
        with self.timer.part("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with self.timer.part("optimizer"):
            set_rate(self.optimizer, self.rate(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with self.timer.part("bank"):
            self.bank.write(batch.clip_ids, projections)
        self.step += 1
        return loss.detach()

    def tail(self, batch: Batch, epoch: int) -> None:
        """The partial batch feeds the bank in eval mode, whatever its size."""
        self.network.eval()
        self._write_bank(batch, epoch)
        self.network.train()

    @torch.no_grad()
    def _write_bank(self, batch: Batch, epoch: int) -> None:
        (view,) = self.augment(batch.clip_ids, batch.views[:1], epoch)
        with autocast(self.config, self.options.device):
            self.bank.write(batch.clip_ids, self.network(view))

    def end_epoch(self) -> None:
        """Every row of the bank was written exactly once."""
        self.bank.check_cover()

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config.optim, step, self.loader.full_batches, self.config.train.epochs)

    def save(self, run: Run, epoch: int) -> None:
        """The bank's generation, then the checkpoint that refers to it."""
        assert self.assignments is not None
        self.bank.save(run.out / "bank.zarr", epoch, self.assignments)
        tensors = {**collect(self.network, self.optimizer), **self.augment.state(), "prototypes": self.prototypes}
        save_checkpoint(run.checkpoints, epoch, tensors, {"step": self.step})

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any], bank: Path) -> int:
        """Restores all state; returns the epoch that was finished."""
        restore(tensors, self.network, self.optimizer)
        self.augment.load_state(tensors)
        self.prototypes = tensors["prototypes"].to(self.options.device)
        self.assignments = self.bank.load(bank, state["epoch"])
        self.step = state["step"]
        return int(state["epoch"])


def pretrain(config: Config, shards: ShardSet, out: Path, options: Options) -> dict[str, Any]:
    """Pre-trains on the train split of `shards` into run directory `out`; returns result.json's content.

    Raises UserError for what the user can mend, Interrupted after Ctrl-C (the last saved epoch remains).
    """
    backend = resolve_backend(config.cluster.backend, options.device)
    state = Pretraining(config, shards, options)
    run = Run(out, "pretrain", config, shards, options)
    if (finished := run.result()) is not None:
        return finished
    done = state.load(*run.load(), out / "bank.zarr") if run.resumed else 0
    run.start()
    console.print(
        f"pretrain: {state.loader.clips} clips, batch {state.batch_size}, K {state.k}, {config.train.epochs} epochs, "
        f"{sum(p.numel() for p in state.network.encoder.parameters()):,} encoder parameters, on {options.device} in "
        f"{precision(config, options.device)}, k-means by {backend}"
    )
    with run.signals():
        if not run.resumed:
            state.fill_bank(run)
        trained = run_epochs(state, run, done)
    return run.finish(
        {
            "encoder": config.model.encoder,
            "clips": {"train": state.loader.clips},
            "k": state.k,
            "batch_size": state.batch_size,
            **trained,
        }
    )
