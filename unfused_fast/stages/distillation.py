"""Stage 2: unsupervised fine-tuning by self-distillation.   N target clips, B clips in a batch, K pseudo-classes.

Clustering the target's training clips with the frozen teacher f_pre gives pseudo-labels; a randomly initialised f_sd
learns them with its deepest classifier and with a head on each block, which also follow the deepest one. The target's
labels are never read. Source: paper section 3, part 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

from unfused_fast.clustering import Background
from unfused_fast.config import Config, DistillConfig
from unfused_fast.console import console
from unfused_fast.data import Augmenter, Batch, Batches, SkippedClips, placed
from unfused_fast.distributed import first_buffers, first_state, in_words, share_layers, sum_gradients
from unfused_fast.errors import UserError
from unfused_fast.models import DistillNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import load_encoder, start_from
from unfused_fast.stages.pseudo_labels import PSEUDO_LABELS, labels_digest, pseudo_labels_together, write_pseudo_labels
from unfused_fast.training import (
    Options,
    PartTimer,
    Position,
    Progress,
    Run,
    autocast,
    build_optimizer,
    collect,
    compiled,
    learning_rate,
    parts_of,
    precision,
    prepare_for,
    progress_of,
    resolve_batch_size,
    restore,
    run_epochs,
    save_checkpoint,
    seed_everything,
    set_rate,
    to_host,
    train_clips,
    train_loader,
)


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

    `cos_logits`: of the unit-norm logits, which is 2 - 2 cos; `logits`, `features`: of what is given, mean over K or D
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


class Distillation:
    """The state that lives through the epochs of stage 2."""

    def __init__(
        self, config: Config, shards: ShardSet, targets: Tensor, k: int, options: Options, skipped: SkippedClips
    ) -> None:
        self.config, self.options, device = config, options, options.device
        seed_everything(config.train.seed)
        self.targets, self.k, clips = targets, k, len(targets)
        self.first_id = shards.first_id("train")
        self.batch_size = resolve_batch_size(config, clips)
        self.ranks = options.ranks
        stream = train_loader(config, shards, options, self.batch_size, skipped)
        self.loader: Batches = placed(stream, ranks=self.ranks)
        self.network = prepare_for(share_layers(DistillNetwork(config, k), self.ranks, config.model.sync_bn), device)
        self.forward = compiled(self.network, options)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.augment = Augmenter(config, clips, device, self.ranks)
        self.timer = PartTimer(device)
        self.step = 0
        self.relabelled: Callable[[int, Tensor], Tensor] | None = None
        """Gives new pseudo-labels, by epoch and the old ones, for `pseudo.refresh_epochs`."""
        self._saving = Background[Path]("checkpoint")

    @property
    def finished(self) -> bool:
        """Distillation has no early stop."""
        return False

    def begin_epoch(self, epoch: int, run: Run) -> dict[str, Any]:
        """The pseudo-labels stay, or are refreshed by `pseudo.refresh_epochs`. Source: authors (clustered once)."""
        self.network.train()
        every = self.config.pseudo.refresh_epochs
        if not every or epoch == 1 or (epoch - 1) % every:
            return {}
        assert self.relabelled is not None
        before, self.targets = self.targets, self.relabelled(epoch, self.targets)
        return {"relabelled": round(float((before != self.targets).float().mean()), 4)}

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Every clip once, from a batch on."""
        return self.loader.epoch(epoch, first_batch=first_batch)

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """One step on one view of each clip: returns the detached loss."""
        with self.timer.part("augment"):
            self.ranks.batch(self.batch_size)
            (view,) = self.augment(batch.clip_ids, batch.views[:1], epoch)
        targets, total = self.targets[batch.clip_ids - self.first_id], torch.zeros((), device=view.device)
        for rows in parts_of(self.config, self.ranks, self.batch_size):
            with self.timer.part("forward"):
                with autocast(self.config, self.options.device):
                    deepest, blocks, *features = self.forward(view[rows])
                parts = distill_loss(deepest, blocks, targets[rows], self.config.distill, *features)
                loss = parts["total"] * (len(deepest) / self.batch_size)
            with self.timer.part("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        with self.timer.part("optimizer"):
            total = sum_gradients(self.network.parameters(), total, self.ranks, self.config.train.gradients)
            set_rate(self.optimizer, self.rate(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if not self.config.model.sync_bn:
                first_buffers(self.network, self.ranks)
        self.step += 1
        return total

    def tail(self, batch: Batch, epoch: int) -> None:
        """The partial batch waits for another epoch's order: a BatchNorm over a few clips would mislead."""

    def end_epoch(self) -> None:
        """Nothing to check: there is no bank."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config.optim, step, self.loader.full_batches, self.config.train.epochs)

    def save(self, run: Run, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Writes the checkpoint, which holds the pseudo-labels too."""
        if not self.ranks.leads:
            return
        self.wait()
        own = {**collect(self.network, self.optimizer), **self.augment.state(), "targets": self.targets}
        copied, state = to_host({**own, **tensors}), {"step": self.step, "k": self.k, "order": run.order, **notes}
        state["ranks"] = self.ranks.world_size
        self._saving.start(lambda: save_checkpoint(run.checkpoints, position, copied(), state))

    def wait(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""
        self._saving.wait()

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
        """Restores all state; returns how far it was."""
        restore(tensors, self.network, self.optimizer)
        self.augment.load_state(tensors)
        self.step = state["step"]
        return progress_of(tensors, state)


def distill(
    config: Config, shards: ShardSet, teacher: Path, out: Path, options: Options, given: Tensor | None = None
) -> dict[str, Any]:
    """Distils into run directory `out`, guided by the pre-training run `teacher`; returns result.json's content.

    Args:
        given: (N,) int64, pseudo-labels of the train split's clips in place of the teacher's clusters. Ours: another
            clustering, or the labels themselves, to see what pseudo-labels could bring at most.

    Raises UserError for what the user can mend, Interrupted after Ctrl-C (what was done is saved).
    """
    clips, inputs = train_clips(shards), {"teacher": str(teacher)}
    if given is not None:
        if len(given) != clips or int(given.min()) < 0 or config.pseudo.refresh_epochs:
            raise UserError(
                f"{len(given)} pseudo-labels are given, for {clips} clips and pseudo.refresh_epochs = "
                f"{config.pseudo.refresh_epochs}; want one a clip, none negative, and no refreshing"
            )
        inputs["pseudo_labels"] = labels_digest(given)
    with Run(out, "distill", config, shards, options, **inputs) as run:
        if (finished := run.result()) is not None:
            return finished
        return _trained(run, config, shards, teacher, options, given)


def _trained(
    run: Run, config: Config, shards: ShardSet, teacher: Path, options: Options, given: Tensor | None
) -> dict[str, Any]:
    skipped = SkippedClips(options.skip_bad, options.ranks)
    if run.resumed:
        tensors, saved = run.load()
        skipped.load(saved, shards)
        targets, k = tensors["targets"].to(options.device), int(saved["k"])
    elif given is not None:
        targets, k = given.to(options.device), int(given.max()) + 1
    else:
        targets, k = pseudo_labels_together(config, shards, teacher, options, skipped)
    state = Distillation(config, shards, targets, k, options, skipped)

    def relabelled(epoch: int, before: Tensor) -> Tensor:
        found, _ = pseudo_labels_together(config, shards, teacher, options, skipped, epoch, before)
        if options.ranks.leads:
            write_pseudo_labels(run.out / PSEUDO_LABELS, shards, found)
        return found

    state.relabelled = relabelled
    if config.distill.init == "teacher" and not run.resumed:
        if options.ranks.leads:
            start_from(state.network.encoder, load_encoder(teacher, options.device))
        first_state(state.network, options.ranks)
    progress = state.load(tensors, saved) if run.resumed else None
    run.start()
    if options.ranks.leads and not run.resumed:
        write_pseudo_labels(run.out / PSEUDO_LABELS, shards, targets)
    sizes = torch.bincount(targets, minlength=k)
    console.print(
        f"distill: {len(targets)} clips, batch {state.batch_size}, {k} pseudo-classes of {int(sizes.min())} to "
        f"{int(sizes.max())} clips, "
        f"{config.train.epochs} epochs, on {options.device} in "
        f"{precision(config, options.device)}{in_words(options.ranks)}"
    )
    with run.signals():
        trained = run_epochs(state, run, progress)
    return run.finish(
        {
            "encoder": config.model.encoder,
            "teacher": str(teacher),
            "clips": {"train": len(targets)},
            "k": k,
            "batch_size": state.batch_size,
            **trained,
            **skipped.result(),
        }
    )
