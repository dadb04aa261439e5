"""Deep clustering: each epoch the memory bank is clustered, and the network learns to predict each clip's cluster.

N clips of the train split, B clips in a batch, K clusters, P size of a projection.

A Head predicts the clusters; DECAR-v2 and v1 differ in the head and in their settings. With `cluster.k` as a list
every head has its own clustering of the same bank, and the loss is the mean over heads. Source: DeepCluster-v2 (several
heads in one run); the authors' code takes a list, of one entry. With `loss.instance` two views predict the clusters,
and instance.py adds a term that compares them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unfused_fast.clustering import (
    Clustering,
    Collapse,
    MemoryBank,
    cluster_rows,
    cluster_sizes,
    normalised_mutual_information,
    resolve_backend,
    row_spread,
    stalled,
)
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import key
from unfused_fast.distributed import first_buffers
from unfused_fast.errors import UserError
from unfused_fast.methods.instance import InstanceTerm
from unfused_fast.methods.method import Log, Method, Passes
from unfused_fast.models import follow, follower


class Head(nn.Module):
    """Predicts a clip's cluster from its projection; created again at each clustering, so K may change."""

    assignments: Tensor | None

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__()
        self.config, self.device, self.width = config, device, config.model.proj_dim
        self.register_buffer("assignments", None)

    def make(self, k: int, centroids: Tensor | None, generator: torch.Generator) -> None:
        """Parameters for K clusters. `centroids` (K, P) in the space of the bank; None where another space was
        clustered.
        """
        raise NotImplementedError

    def scores(self, projections: Tensor) -> Tensor:
        """(B, P) float32 -> (B, K) logits."""
        raise NotImplementedError

    def loss(self, projections: Tensor, rows: Tensor) -> Tensor:
        """(B, P) float32 and (B,) rows of the bank -> () mean cross-entropy with their clusters."""
        assert self.assignments is not None
        return cross_entropy(self.scores(projections), self.assignments[rows])

    def centroids(self) -> Tensor | None:
        """(K, P) to start the next clustering from, with `cluster.init` = warm."""
        return None

    def step(self) -> None:
        """One update of the trained parameters, by SGD without momentum, which has no state."""

    def remake(self, clustering: Clustering, seed: int) -> None:
        """The head for new clusters."""
        self.assignments = clustering.assignments
        self.make(len(clustering.counts), clustering.prototypes, torch.Generator().manual_seed(seed))


class DeepClustering(Method):
    """The memory bank, its clusterings, and the heads that predict them."""

    head: type[Head]

    def set_up(self, clips: int) -> None:
        config = self.config
        self.k = resolve_k(config, clips)
        self.filled_by_training = config.bank.fill == "training"
        self.uses_partial_batch = self.filled_by_training
        self.views, self._bank_views = config.whole_views + config.views.local, config.bank.views - 1
        self.instance = None if config.loss.instance == "none" else InstanceTerm(config, clips, self.ranks)
        dim, dtype = config.model.proj_dim, config.bank.dtype
        self.bank: MemoryBank = MemoryBank(clips, dim, self.first_id, self.device, dtype, self.ranks, self.left_out)
        self.follower = follower(self.network) if config.bank.encoder == "follower" else None
        self.heads = cast(Sequence[Head], nn.ModuleList(self.head(config, self.device) for _ in config.cluster.heads))
        self.nmis: list[float] = []
        self.collapse = Collapse(config)
        self._projected = list[Tensor]()
        """(clips, P) projections for the bank, from each part of the current batch; not kept for the next step."""
        self._backend = ""
        if config.cluster.algo == "spherical":
            self._backend = f" ({resolve_backend(config.cluster.backend, self.device, self.bank.rows.dtype)})"

    @property
    def clusters(self) -> Tensor | None:  # type: ignore[override]
        """(N,) of the first head."""
        return self.heads[0].assignments

    @property
    def finished(self) -> bool:
        """Whether the NMI of consecutive clusterings has stopped improving."""
        return stalled(self.nmis, self.config.train.patience, self.config.cluster.every_epochs)

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        """Assignment phase; then resets the bank's write counts."""
        log = super().begin_epoch(epoch, passes)
        if self.clusters is None or (epoch - 1) % self.config.cluster.every_epochs == 0:
            if self.clusters is None or not self.filled_by_training:
                self._fill_bank(passes)
            with self.part("clustering"):
                log = self._cluster(epoch)
            self.refilling = False
        self._set_mode(True)
        self.bank.start_epoch()
        return {"k": self.k, "ln_k": round(math.log(self.k), 4), **log}

    def _fill_bank(self, passes: Passes) -> None:
        """A pass of one view of every clip through the network: the isolated assignment phase of DECAR-v2's first
        epoch, or the first of DECAR-v1's two passes, over the same crops each epoch.
        """
        self._set_mode(self.filled_by_training and self.config.bank.init_mode == "train")
        self.bank.start_epoch()
        self.refilling = True
        with self.part("bank pass"):
            for clip_ids, view in passes(self.filled_by_training):
                if self.network.training and self._normalises_one():
                    self.partial_batch(clip_ids, view)
                else:
                    self._write_bank(clip_ids, view)
        self._check_cover()

    def _normalises_one(self) -> bool:
        """Whether BatchNorm would see one clip of the current batch, which has no deviation; the same on all ranks."""
        sizes = self.ranks.sizes
        return (sum(sizes) if self.config.model.sync_bn else min(filter(None, sizes), default=0)) == 1

    def _check_cover(self) -> None:
        self.bank.fill_left_out()
        self.bank.check_cover()

    def _cluster(self, epoch: int) -> Log:
        """Clusters the bank for each head, and creates the heads again; changes nothing if Collapsed."""
        began, previous = time.perf_counter(), self.clusters
        first = self._clustering(0, epoch)
        sizes, spread = cluster_sizes(first.counts), row_spread(self.bank.rows, self.ranks)
        self.collapse.check(sizes.largest_share, len(first.counts), epoch)
        self.collapse.check_spread(spread.mean_direction, epoch)
        found = [first, *(self._clustering(number, epoch) for number in range(1, len(self.heads)))]
        for number, (head, clustering) in enumerate(zip(self.heads, found, strict=True)):
            head.remake(clustering, key(self.config.train.seed, epoch, 2 * number + 1) >> 1)
        self.k = len(first.counts)
        if previous is not None:
            self.nmis.append(normalised_mutual_information(previous, first.assignments))
        return {
            "nmi": None if previous is None else round(self.nmis[-1], 4),
            "empty_clusters": sizes.empty,
            "perplexity": round(sizes.perplexity, 2),
            "largest_cluster": round(sizes.largest_share, 4),
            "mean_cosine": round(float(first.mean_cosine), 4),
            **{name: round(value, 4) for name, value in spread._asdict().items()},
            "cluster_seconds": round(time.perf_counter() - began, 4),  # the objective was read, so the device is done
        }

    def _clustering(self, number: int, epoch: int) -> Clustering:
        """Seed of one head; the seeds of all heads and clusterings differ."""
        head, stream = self.heads[number], (2 * number,) if number else ()
        k = int(self.config.cluster.heads[number]) if number else self.k
        start, seed = head.centroids(), key(self.config.train.seed, epoch, *stream) >> 1
        return cluster_rows(self.bank.rows, k, self.config, seed, start, head.assignments, self.ranks)

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """The last whole view, or with an instance term the last two, and local views give the loss; the bank gets an
        earlier one, or with `bank.view` = training the first that gives it.

        p = softmax(scores), loss = -sum q log p with q the assignment (paper section 3; DECAR Eq. 2); in float32. Of
        several views and heads the mean (DeepCluster-v2).
        """
        beside = 1 if self.filled_by_training and self.follower is not None else self._bank_views
        for view in views[:beside]:
            with self.part("forward bank view"):
                self._projected.append(self._row(view))
        with self.part("forward train view"):
            projections = [self.run(view) for view in views[self._bank_views :]]
            if self.filled_by_training and not beside:
                self._projected.append(projections[0].detach())
            rows = clip_ids - self.bank.first_id
            loss = torch.stack([head.loss(each, rows) for head in self.heads for each in projections]).mean()
            if self.instance is not None:
                loss = loss + self.config.loss.instance_weight * self.instance(*projections[:2])
        return loss

    def after_step(self, clip_ids: Tensor) -> None:
        """Updates heads that are trained; the follower follows; projections for the bank become its rows."""
        for head in self.heads:
            head.step()
        super().after_step(clip_ids)
        if self.follower is not None:
            follow(self.follower, self.network, self.config.method.ema)
            if not self.config.model.sync_bn:
                first_buffers(self.follower, self.ranks)
        if self.filled_by_training:
            with self.part("bank"):
                self.bank.write(clip_ids, torch.cat(self._projected))
            self._projected = []

    def partial_batch(self, clip_ids: Tensor, view: Tensor) -> None:
        """Writes the rows of these clips, computed in eval mode."""
        self._set_mode(False)
        self._write_bank(clip_ids, view)
        self._set_mode(True)

    def _set_mode(self, train: bool) -> None:
        for network in filter(None, (self.network, self.follower)):
            network.train(train)

    @torch.no_grad()
    def _row(self, view: Tensor) -> Tensor:
        """(B, 1, F, T) -> (B, P) for the bank, by `bank.encoder`."""
        made: Tensor = self.run(view) if self.follower is None else self.run(view, network=self.follower)
        return made

    def _write_bank(self, clip_ids: Tensor, view: Tensor) -> None:
        self.bank.write(clip_ids, self._row(view))

    def end_epoch(self) -> Log:
        """Every row of the bank was written exactly once by the epoch, where training fills it."""
        if self.filled_by_training:
            self._check_cover()
        return super().end_epoch()

    def summary(self, log: Log) -> str:
        """ln K, the loss of a uniform prediction, for comparison; NMI with the clustering before; sizes."""
        words = [f" (ln K {log['ln_k']:.2f})"]
        if log.get("nmi") is not None:
            words.append(f"NMI {log['nmi']:.2f}")
        if "perplexity" in log:
            words.append(
                f"K {log['k']}, perplexity {log['perplexity']:.0f}, {log['empty_clusters']} empty, "
                f"largest {log['largest_cluster']:.1%}, mean cosine {log['mean_cosine']:.3f}, "
                f"effective rank {log['effective_rank']:.1f}, clustered in {log['cluster_seconds']:.2f} s"
            )
        return "  ".join(words) + super().summary(log)

    def notes(self) -> dict[str, Any]:
        """K of the first head, and how the clusterings went."""
        return {"k": self.k, "nmis": self.nmis, "collapsed": self.collapse.in_a_row}

    def load_notes(self, notes: dict[str, Any]) -> None:
        """Also creates the heads for that number of clusters."""
        self.k, self.nmis, self.collapse.in_a_row = notes["k"], notes["nmis"], notes["collapsed"]
        for head, k in zip(self.heads, (self.k, *self.config.cluster.heads[1:]), strict=True):
            head.assignments = torch.zeros(self.bank.clips, dtype=torch.int64, device=head.device)
            head.make(int(k), torch.zeros(int(k), head.width, device=head.device), torch.Generator())

    def fault(self, notes: dict[str, Any]) -> str | None:
        """More clusters than clips, or another number than the config wants."""
        clips = self.bank.clips
        if not 0 < notes["k"] <= clips:
            return f"its k is {notes['k']}, but the train split has {clips} clips"
        return f"its k is {notes['k']}, but this run's is {self.k}" if self.k not in (0, notes["k"]) else None

    def description(self) -> str:
        """K, the algorithm, the instance term."""
        term = "" if self.instance is None else f", beside them {self.config.loss.instance}"
        return f"{self.title}: K {self.k or 'found'}, clusters by {self.config.cluster.algo}{self._backend}{term}"

    def cluster_sizes(self) -> Tensor | None:
        """(K,) of the first head."""
        return None if self.clusters is None else torch.bincount(self.clusters, minlength=self.k)

    def facts(self) -> dict[str, Any]:
        return {"k": self.k} | ({} if self.instance is None else {"instance": self.config.loss.instance})


def resolve_k(config: Config, clips: int) -> int:
    """Clusters of the first head; 0: the algorithm finds them. Raises UserError: more than clips, in any head."""
    wanted = max(config.cluster.heads, key=lambda k: 0 if k == "auto" else k)
    if config.cluster.algo == "pic":
        return 0
    if wanted == "auto":
        found = max(2, min(512, clips // 8))
        console.once(f"cluster.k: auto is {found} for {clips} clips")
        return min(found, clips)
    if wanted > clips:
        auto = "" if config.method.name == "slicer" else "--set cluster.k=auto, or "  # whose head has a fixed width
        raise UserError(
            f"cluster.k = {wanted}, but the train split has {clips} clips; use {auto}a number up to {clips}"
        )
    return int(config.cluster.heads[0])
