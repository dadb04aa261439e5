"""Stage 2: unsupervised fine-tuning by self-distillation.   N target clips, B clips in a batch, K pseudo-classes.

Clustering the target's training clips with the frozen teacher f_pre gives pseudo-labels; f_sd, which starts at random
in the paper and from the teacher in `recommended`, learns them with its deepest classifier and with a head on each
block, which also follow the deepest one. The target's labels are never read. Source: paper section 3, part 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

from unfused_fast.clustering import match_clusters, pseudo_label_kmeans, resolve_pca_dim
from unfused_fast.config import Config, DistillConfig, with_values
from unfused_fast.console import console, counted
from unfused_fast.data import Window, find_unreadable, key, left_out_input
from unfused_fast.distributed import ALONE, Ranks, first_state, gather_rows, in_words
from unfused_fast.errors import UserError
from unfused_fast.methods import Log, Passes, Trainable, batch_nt_xent
from unfused_fast.models import DistillNetwork, DistillOutput, follower
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import extract, load_encoder
from unfused_fast.stages.teacher import adapted, start_from
from unfused_fast.training import (
    Options,
    Run,
    Trainer,
    encoder_name,
    precision,
    resolve_batch_size,
    train_clips,
    train_loader,
)

PSEUDO_LABELS = "pseudo_labels.parquet"
"""File of a run with the pseudo-labels of the last clustering."""


def pseudo_classes(config: Config, shards: ShardSet) -> int:
    """K: `pseudo.k`, or the number of class names in the manifest: their count alone, as in the paper (K = t). Raises
    UserError where it does not suit the set.
    """
    k = len(shards.manifest.label_names) if config.pseudo.k == "auto" else config.pseudo.k
    if k < 2:
        raise UserError(
            f"{shards.directory}: the set names {k} classes, so K is not known; give it with --set pseudo.k=N (at "
            "least 2)"
        )
    if k > (clips := train_clips(shards)):
        raise UserError(
            f"pseudo.k = {k}, but the train split has {clips} clips; use --set pseudo.k=N with N up to {clips}"
        )
    return k


def pseudo_labels(
    config: Config,
    shards: ShardSet,
    teacher: str | Path,
    device: torch.device,
    epoch: int = 0,
    previous: Tensor | None = None,
    left_out: Sequence[int] = (),
    ranks: Ranks = ALONE,
) -> Tensor:
    """Clusters the target's train split with the frozen teacher -> (N,) pseudo-labels on the device, the same on all
    ranks: they share the features, which rank 0 clusters. Ours: features take most of the time, and one process
    clusters them to the same bits on any number of ranks.

    Args:
        epoch: epoch before which they are refreshed; 0: the first time. Random starts and windows depend on it.
        previous: (N,) the pseudo-labels before; clusters keep the number of most of their clips.
        left_out: clips of train that cannot be read; each gets the pseudo-label of another clip.
    """
    k, clips, settings, seed = pseudo_classes(config, shards), train_clips(shards), config.pseudo, config.train.seed
    frozen, kind = ranks.every(lambda: load_encoder(teacher, device)), settings.feature
    pool = "mean" if kind in ("block1", "block2", "block3") else frozen.config.model.pool
    window = Window(settings.seconds, settings.crop, seed, epoch) if settings.seconds else None

    store = config.data.store
    of = partial(extract, frozen, shards, kind=kind, pool=pool, device=device, store=store, window=window, ranks=ranks)
    train = of("train", read_again=True, left_out=left_out)  # the student reads it again
    features = torch.cat([train, *(of(split) for split in settings.splits if split != "train")])
    labels = torch.empty(clips, dtype=torch.int64, device=device)

    def cluster() -> None:
        found = pseudo_label_kmeans(
            features,
            k,
            pca_dim=resolve_pca_dim(settings.pca_dim, len(features)),
            whiten=settings.whiten,
            iterations=settings.iterations,
            n_init=settings.n_init,
            seed=key(seed, epoch) >> 1 if epoch else seed,
        ).assignments[:clips]
        labels.copy_(found if previous is None else match_clusters(found, previous, k)[found])

    ranks.first(cluster)
    return ranks.from_first(labels)


def labels_digest(labels: Tensor) -> str:
    """sha256 of pseudo-labels (N,) int64."""
    return hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()


def write_pseudo_labels(path: Path, shards: ShardSet, targets: Tensor) -> None:
    """clip_id, key, pseudo_label: one row per clip of the train split."""
    clips = shards.clips_in("train")
    columns = {"clip_id": clips["clip_id"], "key": clips["key"], "pseudo_label": targets.cpu().numpy()}
    pq.write_table(pa.table(columns), path)


def kl_term(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of two logits (B, K), mean over clips, times temperature^2. Source: paper Eq. 1; authors'
    direction.
    """
    expected = softmax(teacher / temperature, dim=1)
    return kl_div(log_softmax(student / temperature, dim=1), expected, reduction="batchmean") * temperature**2


def mse_term(
    student: Tensor, teacher: Tensor, kind: Literal["cos_logits", "logits", "features"] = "cos_logits"
) -> Tensor:
    """Squared distance of two logits (B, K), or features (B, D), mean over clips. Source: paper Eq. 1, whose dimensions
    do not fit; authors.

    `cos_logits`: of the unit-norm logits, which is 2 - 2 cos; `logits`, `features`: of the arguments, mean over K or D
    too.
    """
    if kind != "cos_logits":
        return (student - teacher).square().mean()
    return (normalize(student, dim=1) - normalize(teacher, dim=1)).square().sum(dim=1).mean()


def distill_loss(
    deepest: Tensor,
    blocks: list[Tensor],
    targets: Tensor,
    config: DistillConfig,
    pooled: Tensor | None = None,
    adapted: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """Logits l (B, K), z^i (B, K) of each block, pseudo-labels (B,) -> `total` and its four parts, unweighted; for
    `distill.mse` = features with those of the deepest block and of the others, all (B, D), see DistillOutput.

    L = CE(l) + alpha sum CE(z^i) + (1 - alpha) sum KL(z^i, l) + beta sum MSE(z^i, l). Source: paper Eq. 1.
    """
    guide = deepest.detach() if config.detach_teacher else deepest
    squared = [(block, guide) for block in blocks]
    if pooled is not None:
        squared = [(features, pooled.detach() if config.detach_teacher else pooled) for features in adapted]
    parts = {
        "ce": cross_entropy(deepest, targets),
        "ce_blocks": torch.stack([cross_entropy(block, targets) for block in blocks]).sum(),
        "kl_blocks": torch.stack([kl_term(block, guide, config.kl_temperature) for block in blocks]).sum(),
        "mse_blocks": torch.stack([mse_term(*pair, config.mse) for pair in squared]).sum(),
    }
    total = (
        parts["ce"]
        + config.alpha * parts["ce_blocks"]
        + (1 - config.alpha) * parts["kl_blocks"]
        + config.beta * parts["mse_blocks"]
    )
    return {"total": total, **parts}


class Distillation(Trainable):
    """The student and its pseudo-labels."""

    network: DistillNetwork
    targets: Tensor

    def __init__(
        self,
        config: Config,
        first_id: int,
        targets: Tensor,
        k: int,
        relabelled: Callable[[int, Tensor], Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`targets` (N,) of the clips whose ids begin at `first_id`; `relabelled` is a function of epoch and old
        pseudo-labels that gives new ones, for `pseudo.refresh_epochs`.
        """
        super().__init__(DistillNetwork(config, k))
        self.config, self.first_id, self._relabelled, self.ranks = config, first_id, relabelled, ranks
        self.views = 2 if config.distill.contrast else 1
        self.register_buffer("targets", targets)
        self.start: nn.Module | None = None
        """The encoder as the teacher gave it, with `distill.teacher_share`."""
        if config.distill.init == "teacher" and config.distill.teacher_share:
            self.start = follower(self.network.encoder)
        self._epoch, self._mean = 0, [0.0 if self.start is None else config.distill.teacher_share, config.train.epochs]
        """This epoch; the teacher's share, and the epoch after which its weights are mixed in."""

    def begins(self) -> None:
        """The network has its first weights."""
        if self.start is not None:
            self.start.load_state_dict(self.network.encoder.state_dict())

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        """Keeps the pseudo-labels, or refreshes them by `pseudo.refresh_epochs`. Source: authors (clustered once)."""
        self._epoch, every = epoch, self.config.pseudo.refresh_epochs
        if not every or epoch == 1 or (epoch - 1) % every:
            return {}
        assert self._relabelled is not None
        before, self.targets = self.targets, self._relabelled(epoch, self.targets)
        return {"relabelled": round(float((before != self.targets).float().mean()), 4)}

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """Paper Eq. 1, the mean over views, and with `distill.contrast` the contrast of both."""
        with self.part("forward"):
            outputs: list[DistillOutput] = [self.run(view) for view in views]
        targets, settings = self.targets[clip_ids - self.first_id], self.config.distill
        total = torch.stack([distill_loss(*of[:2], targets, settings, *of[2:4])["total"] for of in outputs]).mean()
        if not settings.contrast:
            return total
        own, temperature = [torch.as_tensor(of.projection) for of in outputs], self.config.loss.temperature
        first, second = (gather_rows(projections, self.ranks) for projections in own)
        return total + settings.contrast * batch_nt_xent(first, second, len(own[0]), temperature, self.ranks)

    @torch.no_grad()
    def end_epoch(self) -> Log:
        """After the last epoch the encoder becomes a mean of the teacher's and what was learned."""
        share, last = self._mean
        if self.start is not None and self._epoch == last:
            learned, first = (of.state_dict().values() for of in (self.network.encoder, self.start))
            for own, given in zip(learned, first, strict=True):
                if own.is_floating_point():  # not the counts of BatchNorm
                    own.lerp_(given, share)
        return {}

    def notes(self) -> dict[str, Any]:
        """How the mean with the teacher's weights is planned."""
        return {"mean": self._mean}

    def load_notes(self, notes: dict[str, Any]) -> None:
        self._epoch = notes["epoch"] + bool(notes["batch"])

    def fault(self, notes: dict[str, Any]) -> str | None:
        """Another share of the teacher's weights than this run would have then, as with other epochs."""
        plans = notes.get("mean", self._mean), self._mean
        before, now = (share if notes["epoch"] >= last else 0.0 for share, last in plans)
        if before == now:
            return None
        return (
            f"epoch {notes['epoch']}: the teacher's weights have a share of {before:g} in its encoder, and would have "
            f"{now:g} in this run"
        )


def distill(
    config: Config, shards: ShardSet, teacher: str | Path, out: Path, options: Options, given: Tensor | None = None
) -> dict[str, Any]:
    """Distils into run directory `out`; returns result.json's content. `teacher` is a run of pre-training or
    another encoder: "base", a model folder, hf://USER/NAME.

    Args:
        given: (N,) int64, pseudo-labels of the train split's clips in place of the teacher's clusters. Ours: another
            clustering, or the labels themselves, for an upper bound on the benefit of pseudo-labels.

    Raises UserError for errors that the user can fix, Interrupted after Ctrl-C (finished work is saved).
    """
    clips, ranks = train_clips(shards), options.ranks
    teacher = ranks.first(lambda: encoder_name(teacher))
    config = with_values(config, ranks.first(lambda: adapted(config, teacher, out if options.resume else None)))
    inputs = {"teacher": teacher}
    if given is not None:
        if len(given) != clips or int(given.min()) < 0 or config.pseudo.refresh_epochs:
            raise UserError(
                f"{len(given)} pseudo-labels are given, for {clips} clips and pseudo.refresh_epochs = "
                f"{config.pseudo.refresh_epochs}; want one per clip, none negative, and no refreshing"
            )
        inputs["pseudo_labels"] = labels_digest(given)
    left_out = ranks.first(lambda: find_unreadable(shards, "train", options.skip_bad))
    inputs |= left_out_input(left_out)
    with Run(out, "distill", config, shards, options, **inputs) as run:
        if (finished := run.result()) is not None:
            return finished
        k = pseudo_classes(config, shards) if given is None else int(given.max()) + 1
        stream = train_loader(config, shards, options, resolve_batch_size(config, clips), left_out)
        # until the teacher's are there, or those of the checkpoint
        targets = (torch.zeros(clips, dtype=torch.int64) if given is None else given).to(options.device)

        on_gpu = [options.device] if options.device.type == "cuda" else []

        def clustered(epoch: int = 0, before: Tensor | None = None) -> Tensor:
            with torch.random.fork_rng(on_gpu):  # the student's numbers must not depend on when this is done
                return pseudo_labels(config, shards, teacher, options.device, epoch, before, left_out, ranks)

        def write(labels: Tensor) -> None:
            if ranks.leads:
                write_pseudo_labels(run.out / PSEUDO_LABELS, shards, labels)

        def relabelled(epoch: int, before: Tensor) -> Tensor:
            write(found := clustered(epoch, before))
            return found

        torch.manual_seed(config.train.seed)
        student = Distillation(config, shards.first_id("train"), targets, k, relabelled, ranks)
        trainer = Trainer(student, stream, config, options, run)
        if config.distill.init == "teacher" and not run.resumed:
            with torch.random.fork_rng(on_gpu):  # rank 0 alone makes a network; dropout is drawn alike on all
                ranks.first(lambda: start_from(student.network.encoder, config, load_encoder(teacher, options.device)))
            first_state(student.network, ranks)
            student.begins()
        if given is None and not run.resumed:
            student.targets = clustered()
        trainer.start()
        if not run.resumed:
            write(student.targets)
        sizes = torch.bincount(student.targets, minlength=k)
        console.print(
            f"distill: {clips} clips, batch {trainer.batch_size}, {k} pseudo-classes of {int(sizes.min())} to "
            f"{int(sizes.max())} clips, {counted(config.train.epochs, 'epoch')}, on {options.device} in "
            f"{precision(config, options.device)}{in_words(ranks)}"
        )
        facts = {"encoder": config.model.encoder, "teacher": teacher, "clips": {"train": clips}, "k": k}
        return run.finish({**facts, **trainer.fit()})
