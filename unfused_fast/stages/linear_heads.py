"""Stage 3: linear evaluation on frozen features.   N clips, R recordings, D features, C classes, B clips a batch, and G
heads, one a learning rate.

Features are computed once, by each of several ranks a part; on rank 0 G linear heads train together in one pass over
them; validation selects one; test is read once. Validation and test are of recordings, whose features are the mean of
their pieces'.
Source: paper section 3, part 3, and section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from unfused_fast.config import Config
from unfused_fast.console import console, counted
from unfused_fast.data import find_unreadable, skipped
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import encoder_of, eval_features
from unfused_fast.stages.labels import LabelledClips, Rows
from unfused_fast.stages.metrics import metric_of
from unfused_fast.stages.protocol import Round, holdout_input, lacking, report_test_in_training, result_of, split_round
from unfused_fast.training import Options, Profile, Run, draw, encoder_name, plot_confusions


def train_heads(
    features: Tensor,
    labels: Tensor,
    classes: int,
    rates: tuple[float, ...],
    config: Config,
    metric: Callable[[Tensor], float] | None = None,
    stepped: Callable[[], object] = lambda: None,
) -> Tensor:
    """Trains G = len(rates) heads by Adam on (N, D) features, all on the same batches -> (G, D + 1, C), of which the
    last row is the bias.

    Softmax over classes for labels (N,), or for labels (N, C) a sigmoid each. Heads start at zero (the problem is
    convex), and each has its own rate: a head's result is the same as if it were trained alone. With `metric` of a head
    (D + 1, C) each head is the one of the epoch with the largest metric, else of the last epoch.
    Source: paper section 4 (batch 32, 50 epochs); authors (Adam). `stepped` is called after each step.
    """
    device, (clips, dim) = features.device, features.shape
    generator = torch.Generator().manual_seed(config.train.seed)
    weights = [torch.zeros(dim, classes, device=device, requires_grad=True) for _ in rates]
    biases = [torch.zeros(classes, device=device, requires_grad=True) for _ in rates]
    groups = [{"params": [weight, bias], "lr": rate} for weight, bias, rate in zip(weights, biases, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, weight_decay=config.eval.weight_decay, fused=True)
    batch_size = min(config.eval.batch_size, clips)
    best: list[tuple[float, Tensor]] = []
    for _ in range(config.eval.epochs):
        order = torch.randperm(clips, generator=generator).to(device)
        for rows in torch.split(order, batch_size):
            logits = torch.baddbmm(
                torch.stack(biases)[:, None], features[rows].expand(len(rates), -1, -1), torch.stack(weights)
            )
            # mean over clips, sum over heads: each head's gradient is that of its own mean loss
            head_losses(logits, labels[rows]).sum().div(len(rows)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stepped()
        if metric is not None:
            found = [(metric(head), head) for head in _joined(weights, biases)]
            best = [max(old, new, key=lambda pair: pair[0]) for old, new in zip(best or found, found, strict=True)]
    return torch.stack([head for _, head in best]) if best else _joined(weights, biases)


def _joined(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """G times (D, C) and (C,) -> (G, D + 1, C)."""
    return torch.cat([torch.stack(weights), torch.stack(biases)[:, None]], dim=1).detach()


def head_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(G, B, C), labels (B,) or (B, C) -> (G, B): cross-entropy, or the sum of the classes' binary ones."""
    if labels.ndim == 2:
        targets = labels.to(logits.dtype).expand_as(logits)
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=2)
    targets = labels.expand(len(logits), -1)
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def round_features(config: Config, clips: LabelledClips, part: Round, features: Tensor) -> dict[str, Tensor]:
    """Features (N, D) of all clips -> those of a round's train clips, and of its recordings of valid and test, where it
    has any; with `eval.standardize` scaled by the statistics of train.
    """

    def of(rows: Rows) -> Tensor:
        return features[torch.from_numpy(rows).to(features.device)]

    if config.eval.standardize:
        learnt = of(part.train)
        mean, std = learnt.mean(dim=0), learnt.std(dim=0, correction=0)
        features = (features - mean) / torch.where(std > 1e-6, std, 1.0)
    scored = {name: rows for name, rows in (("valid", part.valid), ("test", part.test)) if len(rows)}
    return {"train": of(part.train), **{name: clips.recordings(rows).mean(of(rows)) for name, rows in scored.items()}}


class LinearHeads:
    """The heads of a round, one per learning rate, of which validation selects one, or test with `eval.select` =
    best_test.
    """

    def __init__(
        self,
        config: Config,
        clips: LabelledClips,
        part: Round,
        features: Mapping[str, Tensor],
        stepped: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains them on `features` as of round_features; `stepped` is called after each step."""
        settings, train = config.eval, features["train"]
        self._clips, self._part, self._features = clips, part, features
        self.rates = tuple(sorted({settings.lr, *settings.lr_grid}))
        chooser = "test" if settings.select == "best_test" else "valid"
        labels, classes = torch.from_numpy(clips.targets[part.train]).to(train.device), len(clips.label_names)
        of_epoch = partial(self._metric, chooser) if chooser == "test" else None
        self._heads = train_heads(train, labels, classes, self.rates, config, of_epoch, stepped)
        self.best = max(range(len(self.rates)), key=partial(self.metric, chooser))
        """Number of the selected head."""

    def scores(self, split: str, number: int) -> NDArray[np.float32]:
        """(R, C) logits of a head for the recordings of valid or test."""
        return self._scores(split, self._heads[number])

    def metric(self, split: str, number: int) -> float:
        """Accuracy or mAP of a head on the recordings of valid or test."""
        return self._metric(split, self._heads[number])

    def _scores(self, split: str, head: Tensor) -> NDArray[np.float32]:
        return (self._features[split] @ head[:-1] + head[-1]).cpu().numpy()

    def _metric(self, split: str, head: Tensor) -> float:
        rows = self._clips.recordings(getattr(self._part, split)).rows
        return metric_of(self._clips, rows, self._scores(split, head))


def linear_round(config: Config, shards: ShardSet, holdout: float | None) -> tuple[LabelledClips, Round]:
    """split_round for train linear. Raises its UserErrors, also for a multi-label set and for validation labels that
    train lacks, before anything is computed.
    """
    clips, part = split_round(config, shards, holdout)
    if clips.multi_label:
        raise UserError(
            f"{shards.directory}: its clips have several labels each, but train linear wants one; use unfused-fast "
            "evaluate or train finetune"
        )
    if unknown := clips.unknown(part.valid, part.train):
        raise lacking(clips, "split valid", unknown)
    return clips, part


def linear(
    config: Config, shards: ShardSet, encoder: str, out: Path, options: Options, holdout: float | None = None
) -> dict[str, Any]:
    """Evaluates `encoder` (what `load` takes, `random` or `logmel`) on a labelled set; returns result.json's content.

    Raises UserError for a set or run that cannot be evaluated.

    Args:
        holdout: share of the train recordings held out as test, for a set without a test split.
    """
    encoder = options.ranks.first(lambda: encoder_name(encoder))
    with Run(out, "linear", config, shards, options, encoder=encoder, **holdout_input(holdout)) as run:
        result = run.result() or _evaluated(run, config, shards, encoder, options, holdout)
        if options.ranks.leads:
            draw_confusion(run.out, result)
        return result


def _evaluated(
    run: Run, config: Config, shards: ShardSet, encoder: str, options: Options, holdout: float | None
) -> dict[str, Any]:
    ranks = options.ranks
    clips, part = ranks.every(lambda: linear_round(config, shards, holdout))
    apart = "valid" in clips.splits and clips.held_out is None
    left_out = ranks.first(lambda: find_unreadable(shards, "train", options.skip_bad if apart else 0))
    frozen = ranks.every(lambda: encoder_of(encoder, config, options.device))
    report_test_in_training([encoder], shards, clips)
    splits = eval_features(frozen, config, shards, clips.splits, options.device, left_out, ranks=ranks)
    run.start()

    def headed() -> dict[str, Any]:
        """The result of the heads on the features of each split."""
        read = part._replace(train=part.train[~np.isin(clips.clip_ids[part.train], left_out)])
        features = round_features(config, clips, read, torch.cat([splits[name] for name in clips.splits]))
        width, rates = features["train"].shape[1], len({config.eval.lr, *config.eval.lr_grid})
        size = f" of an encoder with model.channels = {config.model.channels}" if encoder == "random" else ""
        console.print(
            f"linear: {len(read.train)} train clips, {width} features{size}, {len(clips.label_names)} classes, "
            f"{counted(rates, 'learning rate')}"
        )
        with Profile(run.out / "profile", options.device, options.profile) as profile:
            heads = LinearHeads(config, clips, read, features, profile.step)
        scored: list[str] = [name for name in ("valid", "test") if name in features]
        paper = heads.rates.index(config.eval.lr)
        at_paper = {name: round(heads.metric(name, paper), 6) for name in scored}
        scores = {name: heads.scores(name, heads.best) for name in scored}
        return {
            **result_of(config, shards, encoder, clips, part, scores),
            "lr": heads.rates[heads.best],
            "paper_lr": {"lr": config.eval.lr, "valid": at_paper["valid"], "test": at_paper.get("test")},
            "valid_by_lr": {
                f"{rate:g}": round(heads.metric("valid", number), 6) for number, rate in enumerate(heads.rates)
            },
            "features": width,
            **skipped(left_out),
        }

    return run.finish(ranks.first(headed))


def draw_confusion(out: Path, result: Mapping[str, Any]) -> None:
    """confusion.png of a finished run, by its result.json, where it is missing."""
    path = out / "confusion.png"
    if "confusion" not in result or path.exists():
        return
    split = "valid" if result["test"] is None else "test"
    trained = " fine-tuned" if result["stage"] == "finetune" else ""
    title = f"{result['encoder']}{trained}, {split} accuracy {result[split]:.3f}"
    draw(path, plot_confusions, [(title, result["confusion"], result["label_names"])])
