"""Windows of whole clips: where one lies, and how long it is.   B clips in a batch, F mel bins, T frames."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unfused_fast.config import LAPE_TASKS, Config
from unfused_fast.data.randomness import Stream, uniform
from unfused_fast.shards.sets.table import ShardSet

Where = Literal["start", "centre", "random"]


class Window(NamedTuple):
    """A part of each clip."""

    seconds: float
    where: Where
    seed: int = 0
    """Of `random`, which lies at one place a clip for a seed and"""
    epoch: int = 0
    """number of the pass."""

    def frames(self, config: Config) -> int:
        """Log-mel frames of it, counted as those of a crop (Config.crop_frames)."""
        return 1 + round(self.seconds * config.frontend.sample_rate_hz) // config.frontend.hop_samples

    def cut(self, log_mel: Tensor, counts: Tensor, clip_ids: Tensor, config: Config) -> tuple[Tensor, Tensor]:
        """(B, 1, F, T) whole clips, (B,) valid frames, (B,) ids -> (B, 1, F, T') windows, (B,) valid frames.

        Windows are frames of the clip's log-mel; a shorter clip is taken whole, and zeros follow it.
        """
        taken = counts.clamp(max=self.frames(config))
        spare = counts - taken
        if self.where == "random":
            draw = uniform(clip_ids, 1, seed=self.seed, epoch=self.epoch, stream=Stream.CROP)[:, 0]
            start = (draw.double() * (spare + 1)).long()
        else:
            start = spare // 2 if self.where == "centre" else torch.zeros_like(spare)
        place = torch.arange(int(taken.max()), device=log_mel.device)
        index = (start[:, None] + place).clamp(max=log_mel.shape[3] - 1)[:, None, None]
        windows = log_mel.gather(3, index.expand(-1, *log_mel.shape[1:3], -1))
        return windows.masked_fill((place >= taken[:, None])[:, None, None], 0.0), taken


def eval_window(config: Config, encoder: Config, shards: ShardSet) -> Window | None:
    """By `eval.crop` and `eval.seconds`, for an encoder trained with `encoder`; None: whole clips."""
    if config.eval.crop == "full":
        return None
    seconds = config.eval.seconds
    if seconds == "auto":
        made = shards.manifest.dataset
        of_task = {task.dataset: task.seconds for task in LAPE_TASKS}
        known = None if made is None else of_task.get(made["name"])
        seconds = encoder.data.crop_seconds if known is None else known
    return Window(seconds, config.eval.crop, config.train.seed)
