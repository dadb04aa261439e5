"""Stage 3: linear evaluation on frozen features.   N clips, D features, C classes, G heads (one a learning rate), B
clips a batch.

Features are computed once; G linear heads train side by side in one pass over them; validation picks one; test is read
once.
Source: paper section 3, part 3, and section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.features import baseline_encoder, eval_features, load_encoder
from unfused_fast.plots import plot_confusion
from unfused_fast.profiling import Profile
from unfused_fast.run import Run
from unfused_fast.shards.table import ShardSet
from unfused_fast.skipped_clips import SkippedClips
from unfused_fast.training import Options, console, train_clips

BASELINES = ("random", "logmel")
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Features (N, D) and labels of one split, on the device: (N,) int64, or (N, C) bool of a multi-label set."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Scores:
    """How predictions (N,) compare with labels (N,)."""

    accuracy: float
    macro_f1: float
    confusion: list[list[int]]
    """Rows are classes, columns predictions; counts of clips."""


def train_heads(
    train: Split,
    classes: int,
    rates: tuple[float, ...],
    config: Config,
    metric: Callable[[Tensor], float] | None = None,
    stepped: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Trains G = len(rates) heads by Adam, all on the same batches -> weights (G, D, C), biases (G, C).

    Softmax over classes, or for labels (N, C) a sigmoid each. Heads start at zero (the problem is convex), and each has
    its own rate: a head's result is the one it would have alone. With `metric` of a head (D + 1, C), whose last row is
    its bias, each head is that of the epoch whose metric is largest, else that of the last.
    Source: paper section 4 (batch 32, 50 epochs); authors (Adam). `stepped` is called after each step.
    """
    device, (clips, dim) = train.features.device, train.features.shape
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
                torch.stack(biases)[:, None], train.features[rows].expand(len(rates), -1, -1), torch.stack(weights)
            )
            # mean over clips, sum over heads: each head's gradient is that of its own mean loss
            head_losses(logits, train.labels[rows]).sum().div(len(rows)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stepped()
        if metric is not None:
            heads = [torch.cat([w, b[None]]).detach() for w, b in zip(weights, biases, strict=True)]
            found = [(metric(head), head) for head in heads]
            best = [max(old, new, key=lambda pair: pair[0]) for old, new in zip(best or found, found, strict=True)]
    if best:
        chosen = torch.stack([head for _, head in best])
        return chosen[:, :-1], chosen[:, -1]
    return torch.stack(weights).detach(), torch.stack(biases).detach()


def head_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(G, B, C), labels (B,) or (B, C) -> (G, B): cross-entropy, or the sum of the classes' binary ones."""
    if labels.ndim == 2:
        targets = labels.to(logits.dtype).expand_as(logits)
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=2)
    targets = labels.expand(len(logits), -1)
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def score(labels: Tensor, predictions: Tensor, classes: int) -> Scores:
    """Accuracy, macro-F1 over the classes that occur in labels or predictions, and the confusion matrix (C, C)."""
    confusion = (
        torch.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes).double()
    )
    hits, support = confusion.diagonal(), confusion.sum(dim=1) + confusion.sum(dim=0)
    f1 = 2 * hits / support.clamp(min=1)
    return Scores(
        round(float(hits.sum() / confusion.sum()), 6),
        round(float(f1[support > 0].mean()), 6),
        confusion.long().tolist(),
    )


def label_subset(labels: Labels, fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows of a share of the clips of each class, at least one each, drawn by seed; sorted. Ours: low-label
    evaluation.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 10]))
    chosen = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, math.ceil(fraction * len(rows) - 1e-9))])
    return np.sort(np.concatenate(chosen))


def hold_out_groups(groups: list[str], labels: Labels, fraction: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for clips held out: whole groups in a seeded order until the fraction is reached.

    A group that holds the last clips of a class stays. Raises UserError when no group can be held out.
    """
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    rows_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    held, left, taken = np.zeros(len(codes), dtype=bool), np.bincount(labels), 0
    for group in np.random.Generator(np.random.PCG64([seed, 11])).permutation(len(names)):
        if taken >= fraction * len(held):
            break
        found, counts = np.unique(labels[rows_of[group]], return_counts=True)
        if (left[found] > counts).all():
            left[found] -= counts
            held[rows_of[group]] = True
            taken += len(rows_of[group])
    if not held.any():
        raise UserError(
            "the set has no valid split, and no group of its train clips can be held out without losing a class; "
            "give splits or smaller groups in the CSV"
        )
    return held


def units_to_hold_out(groups: list[str], labels: Labels) -> list[str]:
    """What hold_out_groups keeps whole: the groups, or each clip by itself where every class has one group only.

    Ours: the classes of LibriSpeech are chapters, its groups too; no chapter can be spared, and test shares them all.
    """
    classes = len(np.unique(labels))
    if classes > 1 and len(set(zip(groups, labels.tolist(), strict=True))) == classes:
        return [str(number) for number in range(len(groups))]
    return groups


def _labels_of(shards: ShardSet, split: str) -> Labels:
    labels: Labels = shards.clips_in(split).column("label").to_numpy().astype(np.int64)
    if (labels < 0).any():
        raise UserError(
            f"{shards.directory}: {int((labels < 0).sum())} of {len(labels)} clips of split {split} have no label; "
            "linear evaluation needs one each: "
            "pack with a `label` column, or with --labels-from-folders"
        )
    return labels


def _check_classes(shards: ShardSet, labels: dict[str, Labels]) -> None:
    known = set(labels["train"].tolist())
    if len(known) < 2:
        raise UserError(
            f"{shards.directory}: the train split has clips of one class only; linear evaluation needs at least two"
        )
    for split, found in labels.items():
        unknown = sorted(shards.manifest.label_names[label] for label in set(found.tolist()) - known)
        if unknown:
            raise UserError(
                f"{shards.directory}: split {split} has labels that train lacks: {', '.join(unknown[:5])}; add such "
                "clips to train or drop them"
            )


def labels_of_splits(shards: ShardSet) -> dict[str, Labels]:
    """Labels of train, valid and test, as far as the set has them. Raises UserError for a set that cannot be
    evaluated.
    """
    train_clips(shards)
    labels = {name: _labels_of(shards, name) for name in ("train", "valid", "test") if name in shards.manifest.splits}
    _check_classes(shards, labels)
    return labels


def refuse_unevaluable(config: Config, shards: ShardSet) -> None:
    """Raises UserError for a set and a config that linear() would refuse, before anything is computed."""
    labels = labels_of_splits(shards)
    if config.eval.select == "best_test" and "test" not in labels:
        raise UserError(f"{shards.directory}: eval.select = best_test, but the set has no test split; use valid")
    if "valid" not in labels:
        _held_out(config, shards, labels["train"])


def _held_out(config: Config, shards: ShardSet, labels: Labels) -> tuple[list[str], NDArray[np.bool_]]:
    """Groups of the train clips, and which of these serve as validation, of a set without a valid split."""
    groups = units_to_hold_out(shards.clips_in("train").column("group").to_pylist(), labels)
    return groups, hold_out_groups(groups, labels, config.eval.valid_fraction, config.train.seed)


def _splits(
    config: Config, shards: ShardSet, encoder: str, device: torch.device, skipped: SkippedClips
) -> tuple[dict[str, Split], int]:
    """Features and labels of train, valid and (where the set has it) test; and how many train clips the head may
    use.
    """
    refuse_unevaluable(config, shards)
    labels = labels_of_splits(shards)
    names, seed = list(labels), config.train.seed
    if config.eval.shuffle_labels:
        generator = np.random.Generator(np.random.PCG64([seed, 12]))
        labels = {name: generator.permutation(found) for name, found in labels.items()}
    frozen = baseline_encoder(encoder, config, device) if encoder in BASELINES else load_encoder(Path(encoder), device)
    features = eval_features(frozen, config, shards, names, device, skipped if "valid" in names else None)
    rows = {name: np.arange(len(found)) for name, found in labels.items()}
    if "valid" not in names:
        groups, held = _held_out(config, shards, labels["train"])
        labels["valid"], features["valid"] = labels["train"], features["train"]
        rows["train"], rows["valid"] = np.flatnonzero(~held), np.flatnonzero(held)
        count = len({groups[row] for row in rows["valid"]})
        console.print(f"linear: no valid split; held out {len(rows['valid'])} train clips ({count} groups)")
    rows["train"] = rows["train"][label_subset(labels["train"][rows["train"]], config.eval.label_fraction, seed)]
    if config.eval.standardize:
        mean, std = (
            features["train"][rows["train"]].mean(dim=0),
            features["train"][rows["train"]].std(dim=0, correction=0),
        )
        features = {name: (found - mean) / torch.where(std > 1e-6, std, 1.0) for name, found in features.items()}
    splits = {}
    for name, index in rows.items():
        picked = torch.from_numpy(index).to(device)
        splits[name] = Split(features[name][picked], torch.from_numpy(labels[name]).to(device)[picked])
    return splits, len(rows["train"])


def linear(config: Config, shards: ShardSet, encoder: str, out: Path, options: Options) -> dict[str, Any]:
    """Evaluates `encoder` (a run directory, `random` or `logmel`) on a labelled set; returns result.json's content.

    Raises UserError for a set or run that cannot be evaluated.
    """
    with Run(out, "linear", config, shards, options, encoder=encoder) as run:
        if (finished := run.result()) is not None:
            return finished
        return _evaluated(run, config, shards, encoder, options)


def _evaluated(run: Run, config: Config, shards: ShardSet, encoder: str, options: Options) -> dict[str, Any]:
    skipped = SkippedClips(options.skip_bad)
    splits, used = _splits(config, shards, encoder, options.device, skipped)
    by_test = config.eval.select == "best_test"
    run.start()
    classes = len(shards.manifest.label_names)
    rates = tuple(sorted({config.eval.lr, *config.eval.lr_grid}))
    console.print(
        f"linear: {used} train clips, {splits['train'].features.shape[1]} features, {classes} classes, {len(rates)} "
        "learning rates"
    )

    def hits(head: Tensor) -> float:
        chosen = splits["test"]
        return float(((chosen.features @ head[:-1] + head[-1]).argmax(dim=1) == chosen.labels).float().mean())

    metric = hits if by_test else None
    with Profile(run.out / "profile", options.device, options.profile) as profile:
        weights, biases = train_heads(splits["train"], classes, rates, config, metric, profile.step)

    def predict(split: str, head: int) -> Scores:
        chosen = splits[split]
        return score(chosen.labels, (chosen.features @ weights[head] + biases[head]).argmax(dim=1), classes)

    valid = [predict("valid", head) for head in range(len(rates))]
    judged = [predict("test", head) for head in range(len(rates))] if by_test else valid
    best = max(range(len(rates)), key=lambda head: judged[head].accuracy)
    paper = rates.index(config.eval.lr)
    test = {head: predict("test", head) for head in {best, paper}} if "test" in splits else {}
    shown = test.get(best, valid[best])
    plot_confusion(
        run.out / "confusion.png",
        shown.confusion,
        shards.manifest.label_names,
        f"{encoder}, {'test' if test else 'valid'} accuracy {shown.accuracy:.3f}",
    )
    return run.finish(
        {
            "task": shards.directory.name,
            "encoder": encoder,
            "metric": "accuracy",
            "valid": valid[best].accuracy,
            "test": test[best].accuracy if test else None,
            "macro_f1": {"valid": valid[best].macro_f1, "test": test[best].macro_f1 if test else None},
            "select": config.eval.select,
            "lr": rates[best],
            "paper_lr": {
                "lr": config.eval.lr,
                "valid": valid[paper].accuracy,
                "test": test[paper].accuracy if test else None,
            },
            "valid_by_lr": {f"{rate:g}": scores.accuracy for rate, scores in zip(rates, valid, strict=True)},
            "classes": classes,
            "label_names": list(shards.manifest.label_names),
            "clips": {name: len(split.labels) for name, split in splits.items()},
            "label_fraction": config.eval.label_fraction,
            "features": splits["train"].features.shape[1],
            "confusion": shown.confusion,
            **skipped.result(),
        }
    )
