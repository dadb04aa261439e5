"""MoCo: a clip's view is told from a queue of earlier clips, as a slowly following network sees them.

Source: He et al., arXiv 1911.05722, section 3 and Algorithm 1; on audio the authors of LAPE, with one linear layer as
head (v1). The head of v2 (arXiv 2003.04297) is `model.projector` = mlp.
Needs two views, of one crop or of two, and takes local ones, as queries; a queue of keys and a key encoder, which gets
no gradient and moves by an exponential moving average. The batch is not shuffled over GPUs (MoCo section 3.3), which
keeps a GPU's BatchNorm from telling whose key is whose: here BatchNorm is over the batch of all ranks. It may still
tell of which batch a key is, as in the authors' code on one GPU; the larger the batch, the less.

B clips in a batch, K keys in the queue, P size of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.methods.method import LEAST_CLIPS, Method
from unfused_fast.methods.signs import ContrastSigns
from unfused_fast.models import KeyQueue, follow, follower

MOST_KEYS = 65536
"""`method.queue` = auto on a large set. Source: MoCo section 4.1; authors of LAPE."""


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, P) queries and their own keys, (K, P) other clips' keys, all of unit norm -> () mean cross-entropy of picking
    the own key. Source: MoCo Eq. 1.
    """
    scaled = queries / temperature
    own, others = (scaled * keys).sum(dim=1), (scaled @ queue.T).logsumexp(dim=1)
    return (torch.logaddexp(own, others) - own).mean()  # no second (B, K) for all scores side by side


class MoCo(Method):
    """Contrast with a queue."""

    title, views = "MoCo", 2

    def set_up(self, clips: int) -> None:
        config = self.config
        if self.ranks.together and not config.model.sync_bn:
            raise UserError(
                f"model.sync_bn = False: by BatchNorm over one process's few clips {config.method.name} could tell "
                "which key is whose; leave it at True"
            )
        self.key_network = follower(self.network)
        keys, batch = resolve_queue(config, clips), config.train.clips_a_step(clips)
        if keys < batch and config.method.queue != "auto":
            raise UserError(
                f"method.queue = {keys}, but a batch has {batch} clips, whose keys would push each other out; use "
                f"--set method.queue=auto, or {batch} to {clips}"
            )
        if keys < batch:
            smaller = f"--set train.batch_size={keys}, " if keys >= LEAST_CLIPS else ""
            raise UserError(
                f"method.queue: auto is {keys} for {clips} clips, and {config.method.name} wants at least a batch of "
                f"{batch}; use {smaller}a larger set, or --method byol"
            )
        self.queue = KeyQueue(keys, config.model.proj_dim)
        self.signs = ContrastSigns(self.ranks)
        self._keys = list[list[Tensor]]()
        """Keys of this rank's clips, of each direction, from each part of the current batch."""

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """The second view is the key, the first the query, and so are local ones."""
        query_view, key_view, *local_views = views
        with self.part("forward key view"), torch.no_grad():
            keys = self.run(key_view, network=self.key_network)
        with self.part("forward"):
            queries = [self.run(view) for view in (query_view, *local_views)]
        return self.contrast((queries, keys))

    def contrast(self, *directions: tuple[Sequence[Tensor], Tensor]) -> Tensor:
        """Of each direction queries by one or more views and their keys, (n, P) each, of this rank's clips and of any
        norm -> () InfoNCE, its mean over queries, its sum over directions; the keys are kept for the queue.
        """
        losses, self._keys = list[Tensor](), [*self._keys, [normalize(keys, dim=1) for _, keys in directions]]
        for (queries, _), keys in zip(directions, self._keys[-1], strict=True):
            units = [normalize(rows, dim=1) for rows in queries]
            self.signs.note_views(units[0], keys, self.ranks.gather_parts(keys, self.ranks.sizes))
            found = [info_nce(rows, keys, self.queue.keys, self.config.loss.temperature) for rows in units]
            losses.append(torch.stack(found).mean())
        return torch.stack(losses).sum()

    def after_step(self, clip_ids: Tensor) -> None:
        """The key encoder follows; the batch's keys enter the queue, those of all ranks in the batch's order."""
        follow(self.key_network, self.network, self.config.method.ema)
        for parts in zip(*self._keys, strict=True):
            self.queue.push(self.ranks.gather_parts(torch.cat(parts), self.ranks.sizes))
        self._keys = []
        super().after_step(clip_ids)

    def description(self) -> str:
        return f"{self.title}, queue of {len(self.queue.keys):,} keys"

    def facts(self) -> dict[str, Any]:
        return {"queue": len(self.queue.keys)}


def resolve_queue(config: Config, clips: int, most: int = MOST_KEYS) -> int:
    """Keys in the queue of a run over `clips` clips, `most` with auto. Raises UserError for more than clips."""
    wanted = config.method.queue
    if wanted == "auto":
        found = min(most, max(1, clips // 2))
        console.once(f"method.queue: auto is {found} for {clips} clips")
        return found
    if wanted > clips:
        raise UserError(
            f"method.queue = {wanted}, but the train split has {clips} clips, and a clip would be in it twice; "
            f"use --set method.queue=auto, or a number up to {clips}"
        )
    return wanted
