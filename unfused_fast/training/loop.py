"""The epochs that stages 1 and 2 go through: batches, steps, the partial last batch, logs, saving, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unfused_fast.clustering import Collapsed
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import Batch, Batches, freed_memory_kept
from unfused_fast.distributed import RankLost, Ranks
from unfused_fast.errors import UserError
from unfused_fast.training.checkpoint import Position
from unfused_fast.training.losses import READ_EVERY, Losses, check_finite, not_finite
from unfused_fast.training.options import Interrupted, Options, full_precision
from unfused_fast.training.profiling import Profile
from unfused_fast.training.progress import EpochProgress, PartTimer
from unfused_fast.training.run_directory import Run
from unfused_fast.training.saves import Saves


class Stage(Protocol):
    """What run_epochs asks of a stage's state."""

    config: Config
    options: Options
    loader: Batches
    batch_size: int
    timer: PartTimer
    step: int

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def finished(self) -> bool:
        """Whether to stop before `train.epochs`."""

    def begin_epoch(self, epoch: int, run: Run) -> dict[str, Any]:
        """Prepares an epoch; returns numbers for the log."""

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """What the epoch trains on, from a batch on."""

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """One step on a full batch; returns the detached loss."""

    def tail(self, batch: Batch, epoch: int) -> None:
        """The last, partial batch of an epoch, which takes no step."""

    def end_epoch(self) -> dict[str, Any] | None:
        """Checks what must hold after an epoch; returns numbers for the log, if it has any."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""

    def save(self, run: Run, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Copies everything that going on from the position needs, beside what is given, and writes it in a thread."""

    def wait(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""


@dataclass
class Progress:
    """How far run_epochs has come; what it notes in a checkpoint."""

    position: Position = field(default_factory=lambda: Position(0))
    loss: float | None = None
    """Mean loss of the last whole epoch."""
    values: dict[str, Any] = field(default_factory=dict)
    """What begin_epoch gave for the log of the epoch begun."""
    seconds: float = 0.0
    """Spent in the epoch begun."""
    start: dict[str, float] = field(default_factory=dict)
    """Seconds of the start and of the first epoch."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Of the losses of the epoch begun."""

    def notes(self) -> dict[str, Any]:
        """For the JSON of a checkpoint; inverse of progress_of."""
        return {"loop": {"loss": self.loss, "values": self.values, "seconds": self.seconds, "start": self.start}}


def progress_of(tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
    """What a checkpoint says of the loop: its tensors and JSON."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("losses.")}
    return Progress(Position(state["epoch"], state["batch"]), **state["loop"], tensors=own)


def run_epochs(state: Stage, run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Trains from `progress` to the end of epoch `train.epochs`, or until the stage is finished; returns the last loss,
    the last epoch, the median clips/s, and the seconds of the start (log-mels to memory) and of the first epoch.

    Raises UserError when losses are NaN or infinite, clusters have collapsed, the data cannot be read or the last save
    failed, Interrupted when a signal came; what was done is saved then.
    """
    epochs, steps, ranks = state.config.train.epochs, state.loader.full_batches, state.options.ranks
    before = run.last_logged() if progress else {}  # all there is to tell when no epoch is left
    progress = progress or Progress()
    rates = list[float]()
    profile = Profile(run.out / "profile", state.loader.device, state.options.profile and ranks.leads)
    state.timer.profile = profile
    done = progress.position.epoch * steps + progress.position.batch
    saves = Saves(state, run, state.options.save_every, progress.position)
    shown = EpochProgress(run.stage, epochs, steps, done)

    def stepped() -> None:
        shown.step()
        profile.step()

    precision = full_precision(state.config, state.options.device)
    kept = freed_memory_kept(state.options.device)
    with precision, kept, saves, profile, _memory(state), _others(saves), _compiler(run, saves), shown:
        while progress.position.epoch < epochs and (progress.position.batch or not state.finished):
            epoch = progress.position.epoch + 1
            _train_epoch(state, run, progress, saves, stepped)
            rates.append(state.loader.clips / progress.seconds)
            timing = {"clips_per_second": round(rates[-1], 1), "epoch_seconds": round(progress.seconds, 3)}
            if not progress.start:  # what a start costs stands apart from what an epoch costs
                timing["start_seconds"] = round(state.loader.start_seconds, 3)
                progress.start = {
                    "start_seconds": timing["start_seconds"],
                    "first_epoch_seconds": timing["epoch_seconds"],
                }
            assert progress.loss is not None
            numbers = {"loss": round(progress.loss, 6), "lr": state.rate(state.step - 1), **progress.values, **timing}
            run.log(epoch, {**numbers, "parts": state.timer.read()})
            words = f"{_clusters_note(progress.values)}{_judged_note(progress.values)}"
            note = f"loss {progress.loss:.3f}{words}  {rates[-1]:.0f} clips/s"
            progress.values, progress.seconds = {}, 0.0
            (run.stopping,) = ranks.agree(run.stopping)
            last = epoch == epochs or state.finished
            if last or run.stopping or epoch % state.config.train.save_every == 0:
                saves.begin(progress.position, {}, _notes(state, progress))
            shown.epoch(epoch, note)
            if run.stopping and not last:
                _settled(saves, ranks)
                raise Interrupted(f"{run.out}: stopped after epoch {epoch}, saved; go on with --resume")
        saves.settle()
    done = progress.position.epoch
    if state.finished and done < epochs:
        console.print(f"{run.stage}: stopped after epoch {done} of {epochs}, see train.patience")
    rate = round(sorted(rates)[len(rates) // 2], 1) if rates else before.get("clips_per_second")
    return {"loss": progress.loss, "last_epoch": done, "clips_per_second": rate, **progress.start}


def _train_epoch(state: Stage, run: Run, progress: Progress, saves: Saves, stepped: Callable[[], object]) -> None:
    """The epoch after `progress`, or what is left of it; `progress` then stands at its end."""
    (done, first), steps, config = progress.position, state.loader.full_batches, state.config
    epoch, began = done + 1, time.perf_counter() - progress.seconds
    losses, ranks, skipped = Losses(state.loader.device), state.options.ranks, state.loader.skipped
    if first:
        losses.load(progress.tensors)
    else:
        try:
            progress.values = state.begin_epoch(epoch, run)
        except (Interrupted, Collapsed) as stopped:
            if done and saves.last != progress.position:
                saves.begin(progress.position, {}, _notes(state, progress))
            if isinstance(stopped, Collapsed):
                raise UserError(f"{stopped}; {ranks.first(saves.said)}") from stopped
            if not done:
                raise Interrupted(f"{run.out}: stopped before the first epoch; nothing is saved yet") from stopped
            _settled(saves, ranks)
            raise Interrupted(f"{run.out}: stopped before epoch {epoch}, saved; go on with --resume") from stopped
    taken, batches = first, state.batches(epoch, first)

    def said() -> str:
        """On every rank when rank 0 has written: see _settled."""
        return str(ranks.first(saves.said))

    def save() -> None:
        check_finite(losses, state.network, epoch, said, config)
        progress.position, progress.seconds = Position(done, taken), time.perf_counter() - began
        saves.begin(progress.position, losses.tensors(), _notes(state, progress))

    while True:
        batch, unread = None, None
        try:
            batch = state.timer.next("load", batches)
        except UserError as error:
            unread = error
        due = taken > first and ranks.leads and saves.due(state.step)
        run.stopping, due, failed, news = ranks.agree(run.stopping, due, unread is not None, skipped.news)
        if news:
            skipped.tell()
        if failed:
            told = "; ".join(text for text in ranks.texts("" if unread is None else str(unread)) if text)
            if taken > first:
                save()
                _settled(saves, ranks)
            try:
                raise UserError(f"{told}; {saves.said()}, go on with --resume when that is mended") from unread
            finally:
                del unread  # it holds this frame, and so would keep the reader and its files open
        if batch is None:
            break
        if taken > first and (run.stopping or due):
            save()
            if run.stopping:
                _settled(saves, ranks)
                raise Interrupted(
                    f"{run.out}: stopped in epoch {epoch} after {taken} of {steps} steps, saved; go on with --resume"
                )
        taken += 1
        if taken > steps:
            state.tail(batch, epoch)
            continue
        losses.add(state.train_batch(batch, epoch))
        stepped()
        if taken % READ_EVERY == 0 and (fault := losses.fault()) is not None:
            raise not_finite(fault, epoch, said(), config)
    progress.values |= state.end_epoch() or {}
    check_finite(losses, state.network, epoch, said, config)
    progress.position, progress.loss = Position(epoch), losses.mean(steps)
    progress.seconds = time.perf_counter() - began


def _settled(saves: Saves, ranks: Ranks) -> None:
    """Waits until rank 0 has written: who started the processes would soon end it when another one ends."""
    ranks.first(saves.settle)
    saves.settle()


def _notes(state: Stage, progress: Progress) -> dict[str, Any]:
    return {**progress.notes(), **state.loader.skipped.notes()}


@contextmanager
def _others(saves: Saves) -> Iterator[None]:
    """Says what is saved when another process of the run is gone."""
    try:
        yield
    except RankLost as error:
        raise RankLost(f"{error}; {saves.said()}, go on with --resume") from error


@contextmanager
def _compiler(run: Run, saves: Saves) -> Iterator[None]:
    """A signal to all processes of a job, as by Ctrl-C, ends the compiler that torch.compile waits for: then the run
    was stopped, and nothing is wrong.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if not (run.stopping and isinstance(error, TorchDynamoException)):
            raise
        raise Interrupted(f"{run.out}: stopped while a graph was compiled; {saves.said()}") from error


@contextmanager
def _memory(state: Stage) -> Iterator[None]:
    """Turns a device without memory left into a UserError that says what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = state.batch_size
        raise UserError(
            f"{state.options.device}: it has no memory for batches of {size} clips ({str(error).split('. ')[0]}); "
            f"start again with --overwrite --set train.batch_size={max(2, size // 2)}"
            + ("" if state.config.train.amp == "bf16" else ", or with --set train.amp=bf16")
        ) from error


def _judged_note(values: dict[str, Any]) -> str:
    """What the screen says of clips that an epoch was judged by: nothing where there were none."""
    return "".join(f"  {name} {values[name]:.3f}" for name in ("valid", "test") if name in values)


def _clusters_note(values: dict[str, Any]) -> str:
    """What the screen says of an epoch's clustering: nothing where there was none."""
    words = [f" (ln K {values['ln_k']:.2f})"] if "ln_k" in values else []
    if values.get("nmi") is not None:
        words.append(f"NMI {values['nmi']:.2f}")
    if "perplexity" in values:
        words += [
            f"K {values['k']}, perplexity {values['perplexity']:.0f}, {values['empty_clusters']} empty, "
            f"largest {values['largest_cluster']:.1%}, mean cosine {values['mean_cosine']:.3f}, "
            f"effective rank {values['effective_rank']:.1f}, clustered in {values['cluster_seconds']:.2f} s"
        ]
    return "  ".join(words)
