"""The epochs that stages 1 and 2 go through: batches, steps, the partial last batch, logs, saving, stopping,
progress.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.pipeline import Batch, Batches
from unfused_fast.profiling import Profile
from unfused_fast.run import Run
from unfused_fast.training import Interrupted, Options, console, progress_bar

MEASURES = "mean_cosine", "inertia"
"""Names that the objective of a clustering has in the log."""


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

    def batches(self, epoch: int) -> Iterator[Batch]:
        """What the epoch trains on."""

    def train_batch(self, batch: Batch, epoch: int) -> Tensor:
        """One step on a full batch; returns the detached loss."""

    def tail(self, batch: Batch, epoch: int) -> None:
        """The last, partial batch of an epoch, which takes no step."""

    def end_epoch(self) -> None:
        """Checks what must hold after an epoch."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""

    def save(self, run: Run, epoch: int) -> None:
        """Writes everything the next epoch needs."""


def run_epochs(state: Stage, run: Run, done: int) -> dict[str, Any]:
    """Trains epochs done + 1 to `train.epochs`, or until the stage is finished; returns the last loss, the last epoch,
    the median clips/s, and the seconds of the start (log-mels to memory) and of the first epoch.

    Raises UserError when the loss is not a number, Interrupted when a signal came: the last saved epoch then remains.
    """
    config, steps, epochs, saved = state.config, state.loader.full_batches, state.config.train.epochs, done
    rates, first = list[float](), dict[str, float]()
    before = run.last_logged() if done else {}  # all there is to tell when the last epoch was saved, but no result
    loss: float | None = before.get("loss")
    profile = Profile(run.out / "profile", state.loader.device, state.options.profile)
    state.timer.profile = profile
    with profile, EpochProgress(run.stage, epochs, steps, done) as progress:
        for epoch in range(done + 1, epochs + 1):
            if state.finished:
                break
            done, start = epoch, time.perf_counter()
            values = state.begin_epoch(epoch, run)
            total, batches = torch.zeros((), device=state.loader.device), state.batches(epoch)
            taken = 0
            while (batch := state.timer.next("load", batches)) is not None:
                taken += 1
                if taken <= steps:
                    total += state.train_batch(batch, epoch)
                    progress.step()
                    profile.step()
                else:
                    state.tail(batch, epoch)
                if run.stopping:
                    kept = (
                        f"epoch {saved} is the last one saved, go on with --resume" if saved else "nothing is saved yet"
                    )
                    raise Interrupted(f"{run.out}: stopped in epoch {epoch}; {kept}")
            state.end_epoch()
            loss = float(total) / steps
            check_finite(loss, state.network, epoch, saved, config)
            seconds = time.perf_counter() - start
            if epoch % config.train.save_every == 0 or epoch == epochs or state.finished:
                with state.timer.part("save"):
                    state.save(run, epoch)
                saved = epoch
            rates.append(state.loader.clips / seconds)
            timing = {"clips_per_second": round(rates[-1], 1), "epoch_seconds": round(seconds, 3)}
            if len(rates) == 1:  # what a start costs stands apart from what an epoch costs
                timing["start_seconds"] = first["start_seconds"] = round(state.loader.start_seconds, 3)
                first["first_epoch_seconds"] = timing["epoch_seconds"]
            run.log(
                epoch,
                {
                    "loss": round(loss, 6),
                    "lr": state.rate(state.step - 1),
                    **values,
                    **timing,
                    "parts": state.timer.read(),
                },
            )
            progress.epoch(epoch, f"loss {loss:.3f}{_clusters_note(values)}  {rates[-1]:.0f} clips/s")
    if state.finished:
        console.print(f"{run.stage}: stopped after epoch {done} of {epochs}, see train.patience")
    rate = round(sorted(rates)[len(rates) // 2], 1) if rates else before.get("clips_per_second")
    return {"loss": loss, "last_epoch": done, "clips_per_second": rate, **first}


def _clusters_note(values: dict[str, Any]) -> str:
    """What the screen says of an epoch's clustering: nothing where there was none."""
    words = [f" (ln K {values['ln_k']:.2f})"] if "ln_k" in values else []
    if values.get("nmi") is not None:
        words.append(f"NMI {values['nmi']:.2f}")
    if "perplexity" in values:
        objective = next(f"{name.replace('_', ' ')} {values[name]:.3f}" for name in MEASURES if name in values)
        words += [
            f"K {values['k']}, perplexity {values['perplexity']:.0f}, {values['empty_clusters']} empty, "
            f"largest {values['largest_cluster']:.1%}, {objective}, {values['cluster_seconds']:.2f} s"
        ]
    return "  ".join(words)


class PartTimer:
    """Seconds of each part of an epoch. On CUDA the parts are measured by events, read once at the end."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.profile: Profile | None = None
        """What gets the parts' names."""
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what the block takes to a part."""
        with nullcontext() if self.profile is None else self.profile.part(name):
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                yield
                end.record()
                self._events.append((name, begin, end))
                return
            start = time.perf_counter()
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def next(self, name: str, items: Iterator[Batch]) -> Batch | None:
        """The next item, its waiting time added to a part; None at the end."""
        with self.part(name):
            return next(items, None)

    def read(self) -> dict[str, float]:
        """Part -> seconds since the last read."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self.seconds[name] = self.seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
        seconds, self.seconds, self._events = self.seconds, {}, []
        return {name: round(value, 4) for name, value in seconds.items()}


class EpochProgress:
    """A bar over the steps of all epochs on a terminal; elsewhere a line for about every tenth of the epochs."""

    def __init__(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self.stage, self.epochs = stage, epochs
        self._progress = progress_bar()
        self._task = self._progress.add_task(stage, total=epochs * steps, completed=done * steps, note="")

    def __enter__(self) -> EpochProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def epoch(self, epoch: int, note: str) -> None:
        """One epoch is done; `note` holds its numbers."""
        self._progress.update(self._task, note=note)
        if not console.is_terminal and (epoch == self.epochs or epoch % max(1, math.ceil(self.epochs / 10)) == 0):
            console.print(f"{self.stage} {epoch}/{self.epochs}  {note}")


def check_finite(loss: float, network: nn.Module, epoch: int, saved: int, config: Config) -> None:
    """Raises UserError with a diagnosis when an epoch's loss, or what it left in the network, is not a number.

    Ours: the network too, because a last step that breaks it shows in no loss, and such a checkpoint is of no use.
    """
    values = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    if math.isfinite(loss) and bool(torch.stack([value.isfinite().all() for value in values]).all()):
        return
    what = "the network's weights are not finite" if math.isfinite(loss) else f"the loss became {loss}"
    kept = f"epoch {saved} is the last one saved" if saved else "nothing was saved"
    raise UserError(
        f"epoch {epoch}: {what}; {kept}. Most often the learning rate is too high (optim.lr = {config.optim.lr:g}, "
        f"optim.name = {config.optim.name}): start again with --overwrite --set optim.lr={config.optim.lr / 10:g}"
        + ("" if config.train.amp == "fp32" else ", or with --set train.amp=fp32")
    )
