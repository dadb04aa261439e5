"""Stage 3: linear evaluation on frozen features.   N clips, D features, C classes, G heads (one a learning rate), B
clips a batch.

Features are computed once; G linear heads train together in one pass over them; validation selects one; test is read
once. Validation and test are of recordings, whose features are the mean of their pieces'.
Source: paper section 3, part 3, and section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from unfused_fast.config import BASELINES, Config
from unfused_fast.console import console, counted
from unfused_fast.data import find_unreadable, skipped
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import baseline_encoder, eval_features, load_encoder
from unfused_fast.stages.labels import LabelledClips, Rows, labelled_clips
from unfused_fast.stages.metrics import accuracy
from unfused_fast.stages.protocol import Round, counts, split_round
from unfused_fast.training import Options, Profile, Run, plot_confusions, read_description, train_clips


@dataclass(frozen=True)
class Split:
    """Features (N, D) and labels of one split, on the device: (N,) int64, or (N, C) bool of a multi-label set. Rows are
    clips of train, recordings of validation and test.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Scores:
    """Metrics of predictions."""

    metric: float
    """Accuracy; for a multi-label set mAP, and the other fields are None."""
    macro_f1: float | None = None
    confusion: list[list[int]] | None = None
    """Rows are classes, columns predictions; counts of recordings."""


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
    its own rate: a head's result is the same as if it were trained alone. With `metric` of a head (D + 1, C), whose
    last row is its bias, each head is the one of the epoch with the largest metric, else of the last epoch.
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
    """Accuracy, macro-F1 over the classes that occur in labels, and the confusion matrix (C, C).

    Ours: classes that occur only in predictions are left out of the mean, so that it is over the same classes for every
    encoder.
    """
    from sklearn.metrics import confusion_matrix, f1_score

    truth, found = labels.cpu().numpy(), predictions.cpu().numpy()
    f1 = f1_score(truth, found, labels=np.unique(truth), average="macro", zero_division=0)
    confusion = confusion_matrix(truth, found, labels=range(classes))
    return Scores(round(accuracy(truth, found), 6), round(float(f1), 6), confusion.tolist())


def labels_of_splits(shards: ShardSet, holdout: float | None = None) -> LabelledClips:
    """The clips of train, valid and test, where the set has them or `holdout` creates a test, one label each. Raises
    UserError for a set that cannot be evaluated.
    """
    train_clips(shards)
    clips = labelled_clips(shards, by_folds=False, tested=False, holdout=holdout)
    if clips.multi_label:
        raise UserError(
            f"{shards.directory}: its clips have several labels each, but train linear wants one; use unfused-fast "
            "evaluate or train finetune"
        )
    used_as = np.array(clips.split_of)
    labels = {name: clips.classes(np.flatnonzero(used_as == name)) for name in dict.fromkeys(clips.split_of)}
    if len(labels["train"]) < 2:
        raise UserError(
            f"{shards.directory}: the train split has clips of one class only; linear evaluation needs at least two"
        )
    for split, found in labels.items():
        unknown = sorted(clips.label_names[label] for label in found - labels["train"])
        if unknown:
            raise UserError(
                f"{shards.directory}: split {split} has labels that train lacks: {', '.join(unknown[:5])}; add such "
                "clips to train or drop them"
            )
    return clips


def refuse_unevaluable(config: Config, shards: ShardSet, holdout: float | None = None) -> None:
    """Raises linear()'s UserError for a set and a config before anything is computed."""
    split_round(config, shards, labels_of_splits(shards, holdout))


def report_test_in_training(encoders: Sequence[str], shards: ShardSet, clips: LabelledClips) -> None:
    """Reports which runs were trained on the clips of a held-out test, and which on its labels too."""
    if clips.held_out is None:
        return
    for run in encoders:
        recorded = None if run in BASELINES else read_description(Path(run))
        if recorded is None or recorded["shards"] != shards.manifest.digest:
            continue
        if recorded["stage"] != "finetune":
            console.once(f"{run}: trained on this set, the held-out test clips included, without their labels")
        elif recorded["inputs"].get("holdout") != f"{clips.held_out.fraction:g}":
            console.once(
                f"{run}: fine-tuned on this set without --holdout {clips.held_out.fraction:g}, so it was trained "
                "on labels of the held-out test, and its scores are optimistic",
                style="yellow",
            )


def _splits(
    config: Config,
    shards: ShardSet,
    encoder: str,
    device: torch.device,
    left_out: Sequence[int],
    clips: LabelledClips,
    part: Round,
) -> dict[str, Split]:
    """Features and labels: of the train clips that the head may use, and of the recordings of valid and test (where
    there is one).
    """
    frozen = baseline_encoder(encoder, config, device) if encoder in BASELINES else load_encoder(Path(encoder), device)
    report_test_in_training([encoder], shards, clips)
    parts = eval_features(frozen, config, shards, clips.splits, device, left_out)
    part = part._replace(train=part.train[~np.isin(clips.clip_ids[part.train], left_out)])
    return round_splits(config, clips, part, torch.cat([parts[name] for name in clips.splits]))


def round_splits(config: Config, clips: LabelledClips, part: Round, features: Tensor) -> dict[str, Split]:
    """Features (N, D) of all clips -> those of a round's train clips, and of its recordings of valid and test, where it
    has any; with `eval.standardize` scaled by the statistics of train.
    """

    def of(rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(features.device)

    if config.eval.standardize:
        learnt = features[of(part.train)]
        mean, std = learnt.mean(dim=0), learnt.std(dim=0, correction=0)
        features = (features - mean) / torch.where(std > 1e-6, std, 1.0)
    found = {}
    for name, rows in (("train", part.train), ("valid", part.valid), ("test", part.test)):
        if len(rows):
            given = features[of(rows)]
            if name != "train":
                recordings = clips.recordings(rows)
                rows, given = recordings.rows, recordings.mean(given)
            found[name] = Split(given, torch.from_numpy(clips.targets[rows]).to(features.device))
    return found


def linear(
    config: Config, shards: ShardSet, encoder: str, out: Path, options: Options, holdout: float | None = None
) -> dict[str, Any]:
    """Evaluates `encoder` (a run directory, `random` or `logmel`) on a labelled set; returns result.json's content.

    Raises UserError for a set or run that cannot be evaluated.

    Args:
        holdout: share of the train recordings held out as test, for a set without a test split.
    """
    with Run(out, "linear", config, shards, options, encoder=encoder, **holdout_input(holdout)) as run:
        result = run.result() or _evaluated(run, config, shards, encoder, options, holdout)
        draw_confusion(run.out, result)
        return result


def draw_confusion(out: Path, result: Mapping[str, Any]) -> None:
    """confusion.png of a finished run, by its result.json, where it is missing."""
    path = out / "confusion.png"
    if "confusion" not in result or path.exists():
        return
    split = "valid" if result["test"] is None else "test"
    trained = " fine-tuned" if result["stage"] == "finetune" else ""
    title = f"{result['encoder']}{trained}, {split} accuracy {result[split]:.3f}"
    plot_confusions(path, [(title, result["confusion"], result["label_names"])])


def holdout_input(holdout: float | None) -> dict[str, str]:
    """The entry for --holdout that a run records, so that it resumes only with the same value."""
    return {} if holdout is None else {"holdout": f"{holdout:g}"}


def _evaluated(
    run: Run, config: Config, shards: ShardSet, encoder: str, options: Options, holdout: float | None
) -> dict[str, Any]:
    settings = config.eval
    clips, part = split_round(config, shards, labels_of_splits(shards, holdout))
    apart = "valid" in clips.splits and clips.held_out is None
    left_out = find_unreadable(shards, "train", options.skip_bad if apart else 0)
    splits = _splits(config, shards, encoder, options.device, left_out, clips, part)
    run.start()
    classes, rates = len(clips.label_names), tuple(sorted({settings.lr, *settings.lr_grid}))
    width = f" of an encoder with model.channels = {config.model.channels}" if encoder == "random" else ""
    console.print(
        f"linear: {len(splits['train'].labels)} train clips, {splits['train'].features.shape[1]} features{width}, "
        f"{classes} classes, {counted(len(rates), 'learning rate')}"
    )
    chooser = "test" if settings.select == "best_test" else "valid"

    def predicted(split: str, head: Tensor) -> Tensor:
        return (splits[split].features @ head[:-1] + head[-1]).argmax(dim=1)

    def metric(head: Tensor) -> float:
        return float((predicted("test", head) == splits["test"].labels).float().mean())

    with Profile(run.out / "profile", options.device, options.profile) as profile:
        weights, biases = train_heads(
            splits["train"], classes, rates, config, metric if chooser == "test" else None, profile.step
        )
    heads = torch.cat([weights, biases[:, None]], dim=1)

    def scores(split: str, number: int) -> Scores:
        return score(splits[split].labels, predicted(split, heads[number]), classes)

    valid = [scores("valid", number) for number in range(len(rates))]
    choice = valid if chooser == "valid" else [scores("test", number) for number in range(len(rates))]
    best = max(range(len(rates)), key=lambda number: choice[number].metric)
    paper = rates.index(settings.lr)
    test = {number: scores("test", number) for number in {best, paper}} if "test" in splits else {}
    found = {"valid": valid[best]} | ({"test": test[best]} if test else {})
    return run.finish(
        {
            **result_of(config, shards, encoder, clips, part, found),
            "lr": rates[best],
            "paper_lr": {
                "lr": settings.lr,
                "valid": valid[paper].metric,
                "test": test[paper].metric if test else None,
            },
            "valid_by_lr": {f"{rate:g}": scored.metric for rate, scored in zip(rates, valid, strict=True)},
            "features": splits["train"].features.shape[1],
            **skipped(left_out),
        }
    )


def result_of(
    config: Config, shards: ShardSet, encoder: str, clips: LabelledClips, part: Round, found: Mapping[str, Scores]
) -> dict[str, Any]:
    """The part of the result common to train linear and train finetune, from the metrics of valid and, where there is
    one, test.
    """
    alike: dict[str, Any] = {
        "task": shards.directory.name,
        "encoder": encoder,
        "metric": "mAP" if clips.multi_label else "accuracy",
        "valid": found["valid"].metric,
        "test": found["test"].metric if "test" in found else None,
        "select": config.eval.select,
        "classes": len(clips.label_names),
        "label_names": list(clips.label_names),
        **counts(clips, part),
        "label_fraction": config.eval.label_fraction,
    }
    if not clips.multi_label:
        alike["macro_f1"] = {name: found[name].macro_f1 if name in found else None for name in ("valid", "test")}
        alike["confusion"] = found["test" if "test" in found else "valid"].confusion
    return alike
