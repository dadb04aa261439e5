"""A network's scores for labelled recordings, and how good they are.   n clips of a split, R recordings, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from unfused_fast.config import Config
from unfused_fast.data import Loader, placed
from unfused_fast.float32 import ieee_float32
from unfused_fast.models import FinetuneNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import WHOLE_CLIP_BATCH
from unfused_fast.stages.labels import LabelledClips, Rows
from unfused_fast.stages.metrics import AveragePrecision, accuracy

Statistics = Mapping[str, float] | None
"""Mean and standard deviation of log-mels; None: those of the shard set, as far as it has any."""


def metric_of(clips: LabelledClips, rows: Rows, scores: NDArray[np.float32]) -> float:
    """Accuracy, or of a multi-label set mAP, of scores (T, C) for rows (T,)."""
    if clips.multi_label:
        return AveragePrecision(clips.targets[rows], scores).mean()
    return accuracy(clips.targets[rows], scores.argmax(axis=1))


class ScoredClips:
    """Recordings of one split, and how good a network is on them: its scores are the mean over their whole clips."""

    def __init__(
        self,
        config: Config,
        shards: ShardSet,
        clips: LabelledClips,
        rows: Rows,
        statistics: Statistics,
        device: torch.device,
        once: bool,
    ) -> None:
        """Args:
        rows: (n,) of `clips`, all of one split.
        once: they are read once, so that no cache is made for them.
        """
        self.clips, self.statistics, self._recordings = clips, statistics, clips.recordings(rows)
        self.rows = self._recordings.rows
        """(R,) of `clips`, one a recording."""
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
        self._loader = placed(stream, single_pass=once)
        self._order = np.argsort(ids)
        self._ids = ids[self._order]

    @torch.no_grad()
    @ieee_float32()
    def scores(self, network: FinetuneNetwork) -> NDArray[np.float32]:
        """(R, C) logits, in float32 whatever the training used, as features.extract; leaves the network in eval
        mode. The head is linear: the mean of the clips' logits is the logits of their mean features.
        """
        network.eval()
        found = np.full((len(self._ids), len(self.clips.label_names)), np.nan, np.float32)
        for batch in self._loader.whole_clips():
            places = np.searchsorted(self._ids, batch.clip_ids.cpu().numpy())
            found[self._order[places]] = network(batch.views[0], batch.frame_counts).cpu().numpy()
        return self._recordings.mean(torch.from_numpy(found)).numpy()

    def metric(self, scores: NDArray[np.float32]) -> float:
        """Accuracy, or of a multi-label set mAP, of scores (R, C)."""
        return metric_of(self.clips, self.rows, scores)
