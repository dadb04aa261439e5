"""SwAV: the prototype of one view of a clip is predicted from the other view, with every prototype used equally.

Source: Caron et al., arXiv 2006.09882, section 3 and its authors' code. It is DeepCluster online: instead of clustering
a bank each epoch, Sinkhorn's algorithm assigns each batch, and the prototypes are trained.
Needs two views, of one crop or of two, and takes local ones (multi-crop); K prototypes (`cluster.k`); for each view a
queue of earlier projections, which are assigned together with the batch, so that it may be smaller than K. Prototypes
have unit norm, and are frozen in the first epoch. Assignments are over the clips of all ranks, but with
`train.accumulate` over those of a part.

B clips in a batch, n of them on this rank, Q rows of a queue, P size of a projection, K prototypes.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from unfused_fast.methods.deep_clustering import resolve_k
from unfused_fast.methods.method import Log, Method, Passes, check_batch
from unfused_fast.methods.moco import resolve_queue
from unfused_fast.methods.signs import UsageSigns
from unfused_fast.models import KeyQueue

EPSILON, ITERATIONS = 0.05, 3
"""Of Sinkhorn's algorithm; a smaller epsilon gives harder assignments. Source: authors."""
FROZEN_EPOCHS = 1
"""First epochs in which the prototypes stay as they began. Source: authors (313 or 5,005 steps, an epoch of theirs)."""
QUEUE_EPOCH = 2
"""The first epoch that assigns by the queues, which are full by then. Ours: the authors wait for 15 of 200 epochs or
more, since early projections move fast; a run of ten epochs would never use them."""
MOST_ROWS = 3840
"""`method.queue` = auto on a large set. Source: authors, for batches of 256."""


@torch.no_grad()
def sinkhorn(scores: Tensor) -> Tensor:
    """(B, K) cosines with prototypes -> (B, K) assignments: rows sum to 1, columns, nearly, to B / K.

    Of exp(scores / EPSILON), columns and then rows are scaled ITERATIONS times. Source: Eq. 3 to 5; authors.
    """
    shares = ((scores - scores.max()) / EPSILON).exp()  # a factor changes nothing; none is above 1
    for _ in range(ITERATIONS):
        shares = shares / shares.sum(dim=0)
        shares = shares / shares.sum(dim=1, keepdim=True)
    return shares


def swapped_loss(scores: Tensor, assignments: Tensor, temperature: float) -> Tensor:
    """(n, K) cosines of one view, (n, K) assignments of the other -> () mean cross-entropy. Source: Eq. 2."""
    return -(assignments * log_softmax(scores / temperature, dim=1)).sum(dim=1).mean()


class SwAV(Method):
    """Swapped prediction of online clusters."""

    title, views = "SwAV", 2

    def set_up(self, clips: int) -> None:
        config = self.config
        check_batch(config, clips, "assigns a batch evenly to prototypes")
        self.k, dim, size = resolve_k(config, clips), config.model.proj_dim, resolve_queue(config, clips, MOST_ROWS)
        self.prototypes = nn.Parameter(normalize(torch.randn(self.k, dim), dim=1))
        self.queues = nn.ModuleList(KeyQueue(size, dim) for _ in range(2))
        self.signs = UsageSigns(self.ranks, self.k, "prototypes")
        self._epoch, self._projected = 0, list[list[Tensor]]()
        """This epoch; projections of both views of this rank's clips, from each part of the current batch."""

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        self._epoch = epoch
        super().begin_epoch(epoch, passes)
        return {"k": self.k, "ln_k": round(math.log(self.k), 4)}

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """The assignment of each of the first two views is predicted from every other view; the mean over these."""
        with self.part("forward"):
            projections = [normalize(self.run(view), dim=1) for view in views]
        prototypes = self.prototypes.detach() if self._epoch <= FROZEN_EPOCHS else self.prototypes
        scores, temperature = [rows @ prototypes.T for rows in projections], self.config.loss.temperature
        self._projected.append([rows.detach() for rows in projections[: len(self.queues)]])
        with self.part("assign"):
            assigned = [self._assigned(*pair) for pair in zip(self._projected[-1], self.queues, strict=True)]
        self.signs.note_shares((scores[0].detach() / temperature).softmax(dim=1))
        pairs = [(of, by) for of in range(len(assigned)) for by in range(len(scores)) if of != by]
        return torch.stack([swapped_loss(scores[by], assigned[of], temperature) for of, by in pairs]).mean()

    @torch.no_grad()
    def _assigned(self, projections: Tensor, queue: nn.Module) -> Tensor:
        """(n, P) of this rank's clips -> (n, K) their assignments, among all ranks' clips and the queue."""
        rows, begin = self.ranks.gather_parts(projections, self.ranks.sizes), self.ranks.rows[1]
        if self._epoch >= QUEUE_EPOCH:
            rows = torch.cat([rows, queue.get_buffer("keys")])
        return sinkhorn(rows @ self.prototypes.T)[begin : begin + len(projections)]

    @torch.no_grad()
    def after_step(self, clip_ids: Tensor) -> None:
        """Prototypes move by an SGD of their own (`optim.head_lr`), and have unit norm again; the batch's projections
        enter the queues. Ours: the authors' one optimiser trains both; apart, the network does not depend on K.
        """
        if self.prototypes.grad is not None:
            self.prototypes.copy_(normalize(self.prototypes - self.config.optim.head_lr * self.prototypes.grad, dim=1))
            self.prototypes.grad = None
        for queue, parts in zip(self.queues, zip(*self._projected, strict=True), strict=True):
            cast(KeyQueue, queue).push(self.ranks.gather_parts(torch.cat(parts), self.ranks.sizes))
        self._projected = []
        super().after_step(clip_ids)

    def summary(self, log: Log) -> str:
        """ln K, the loss of a uniform prediction, for comparison; and how many prototypes are in use."""
        return f" (ln K {log['ln_k']:.2f}){super().summary(log)}"

    def load_notes(self, notes: dict[str, Any]) -> None:
        """The epoch, by which prototypes are frozen and queues used, is that of the checkpoint's position."""
        self._epoch = notes["epoch"] + bool(notes["batch"])

    def description(self) -> str:
        return f"{self.title}: {self.k:,} prototypes, queues of {len(self.queues[0].get_buffer('keys')):,}"

    def facts(self) -> dict[str, Any]:
        return {"k": self.k, "queue": len(self.queues[0].get_buffer("keys"))}
