"""The only training loop: epochs, steps, the partial last batch, logs, saving, stopping, resuming.

A stage gives it a Trainable (a network with its loss) and batches; it creates the optimiser, takes the steps, and
writes the run directory. Order within a step: views, loss, backward, gradients of all ranks, optimiser, `after_step`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from unfused_fast.clustering import Collapsed
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import Augmenter, Batch, Batches, Loader, placed, skipped
from unfused_fast.distributed import RankLost, Share, first_buffers, share_layers, sum_gradients
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.memory import freed_memory_kept
from unfused_fast.methods import Trainable
from unfused_fast.models import step_bytes
from unfused_fast.training.agreement import Agreement, Unread
from unfused_fast.training.checkpoint import Position
from unfused_fast.training.faults import not_finite, out_of_memory
from unfused_fast.training.optim import build_optimizer, learning_rate
from unfused_fast.training.options import Options, Paused, autocast, compiled, full_precision, prepare_for
from unfused_fast.training.progress import EpochProgress, PartTimer, Profile
from unfused_fast.training.run_directory import Run
from unfused_fast.training.saves import Saves
from unfused_fast.training.usage import Usage, in_words

READ_EVERY = 100
"""Steps between two checks that losses are finite, for which the host waits for the device. Ours: the first such loss
makes the weights useless, so continuing makes no sense."""
PASS_EPOCH = 0
"""Views of passes over the clips between two epochs are those of epoch 0; training epochs count from 1."""


class Trainer:
    """Trains a task in a run directory: start(), then fit()."""

    def __init__(
        self, task: Trainable, stream: Loader, config: Config, options: Options, run: Run, augment: bool = True
    ) -> None:
        """Args:
        stream: the train clips; start() may load their log-mels into memory.
        augment: whether views are augmented, and masked.
        """
        self.task, self.config, self.options, self.run = task, config, options, run
        self.ranks, self.batch_size, device = options.ranks, stream.batch_size, options.device
        self._stream, self.loader = stream, cast(Batches, stream)
        prepare_for(share_layers(task, self.ranks, config.model.sync_bn), device)
        self.optimizer = build_optimizer(task.network, config.optim)
        clips, first_id = stream.shards.manifest.splits[stream.split].clips, stream.shards.first_id(stream.split)
        self.augment = Augmenter(config, clips, device, self.ranks, first_id) if augment else None
        self._compiled, self._partial = compiled(task.network, options), False
        self.profile = Profile(run.out / "profile", device, options.profile and self.ranks.leads)
        self.timer, self.usage = PartTimer(device), Usage(config, device)
        self._agreed = Agreement(run, self.ranks, self.timer)
        task.run, task.part = self._run_network, self.timer.part
        self.saves = Saves(run, task, self.optimizer, self.augment, options)
        self.position, self._began = Position(0), 0.0
        self.step = 0
        """Optimiser steps done, over all epochs."""
        self._total = torch.zeros((), device=device)
        """Sum of the losses of the epoch's steps."""
        self._odd = torch.zeros((), dtype=torch.int64, device=device)
        """How many of them were not finite."""
        self._state: dict[str, Any] = {"loss": None, "log": {}, "seconds": 0.0, "start": {}, "rates": []}
        """Mean loss of the last whole epoch; of the epoch begun what the task logged and the seconds spent; seconds of
        the start and of the first epoch; clips/s of each epoch. Noted in checkpoints."""

    def start(self) -> None:
        """Restores a resumed run's state, loads log-mels into memory where requested, and claims the run directory."""
        if self.run.resumed:
            tensors, notes = self.saves.load()
            self.step, self.position, self._state = notes["step"], self.saves.last, notes["loop"]
            if self.position.batch:
                self._total = tensors["losses.total"].to(self._total.device)
        own = -(-self.batch_size // (self.ranks.world_size * self.config.train.accumulate)) * self.task.views
        weights = sum(parameter.nbytes for parameter in self.task.network.parameters())
        # gradients and at most two moments are still to come
        step = step_bytes(self.config, own) + 3 * weights
        self.loader = placed(self._stream, crops=True, ranks=self.ranks, step=step)
        self.run.start()

    def fit(self) -> dict[str, Any]:
        """Trains to the end of epoch `train.epochs`, or until the task is finished; returns the last loss, the last
        epoch, the median clips/s, and the seconds of the start (log-mels to memory) and of the first epoch.

        Raises UserError when losses are NaN or infinite, clusters have collapsed, the data cannot be read or the last
        save failed, Interrupted when a signal came; what was done is saved then.
        """
        epochs, steps = self.config.train.epochs, self.loader.full_batches
        rates, done = self._state["rates"], self.position.epoch * steps + self.position.batch
        precision, kept = full_precision(self.config, self.options.device), freed_memory_kept(self.options.device)
        shown = EpochProgress(self.run.stage, epochs, steps, done)
        with self.run.signals(), precision, kept, self.saves, self.profile, self._explained(), shown:
            while self.position.epoch < epochs and (self.position.batch or not self.task.finished):
                if not self.position.batch and self.position.epoch >= (self.options.until_epoch or epochs):
                    self._stop()
                self._train_epoch(shown)
                rates.append(round(self.loader.clips / self._state["seconds"], 1))
                self._end_epoch(rates[-1], shown)
            self.saves.settle()
        done, rate = self.position.epoch, sorted(rates)[len(rates) // 2]
        if self.task.finished and done < epochs:
            console.print(f"{self.run.stage}: stopped after epoch {done} of {epochs}, see train.patience")
        facts = {"loss": self._state["loss"], "last_epoch": done, "clips_per_second": rate, **self._state["start"]}
        return {"batch_size": self.batch_size, **facts, **skipped(self.loader.left_out)}

    def _train_epoch(self, shown: EpochProgress) -> None:
        """The epoch after the position, or what is left of it; the position is then at its end."""
        (done, first), steps = self.position, self.loader.full_batches
        epoch, taken = done + 1, first
        self._began = time.perf_counter() - self._state["seconds"]
        self.usage.begin()
        self.ranks.seconds()  # waits before this epoch are not part of it
        if not first:
            self.begin_epoch(epoch)
        batches = self.batches(epoch, first)
        while (batch := self._next(batches, Position(done, taken), moved=taken > first)) is not None:
            if taken == steps:  # no step: BatchNorm statistics of a few clips are unreliable
                if self.task.uses_partial_batch:
                    self.task.partial_batch(*self._one_view(batch))
                    self._partial = False
                continue
            self.train_batch(batch)
            taken += 1
            shown.step()
            self.profile.step()
            if taken % READ_EVERY == 0:
                self._check_finite(epoch, weights=False)
        self._state["log"] |= self.task.end_epoch()
        self._check_finite(epoch)
        self.position, self._state["loss"] = Position(epoch), float(self._total) / steps
        self._state["seconds"] = time.perf_counter() - self._began

    def _next(self, batches: Iterator[Batch], position: Position, moved: bool) -> Batch | None:
        """The next batch, None at the end. Before it, all ranks save where that is due, and stop after a signal or when
        one of them cannot read its clips. Without a step since the last save (`moved` false) there is nothing to save.
        """
        try:
            batch, due = self._agreed.read(batches, moved and self.ranks.leads and self.saves.due(self.step))
        except Unread:
            if moved:
                self._save_within(position)
            raise
        stop = moved and batch is not None and self._agreed.stopping
        if stop or (due and batch is not None):
            self._save_within(position)
        if stop:
            self._stop()
        return batch

    def _save_within(self, position: Position) -> None:
        """Saves within an epoch, or at its end."""
        self._check_finite(position.epoch + 1)
        self.position, self._state["seconds"] = position, time.perf_counter() - self._began
        self._save({"losses.total": self._total})

    def _stop(self) -> NoReturn:
        """Ends the run at its position, once that is on the disk."""
        self.saves.settle()
        self.ranks.first(self.run.run_log.close)  # trackers take their time, and a rank that ends has the others ended
        if not any(self.position):
            raise Interrupted(f"{self.run.out}: stopped before the first epoch; nothing is saved yet")
        kind = Interrupted if self._agreed.stopping else Paused
        raise kind(f"{self.run.out}: stopped after {self.position}, saved; {self.options.again}")

    def begin_epoch(self, epoch: int) -> None:
        """Lets the task prepare an epoch. Where the run stops here, the epoch before is saved."""
        self._total, self._odd = torch.zeros_like(self._total), torch.zeros_like(self._odd)
        self.task.network.train()
        done = epoch - 1
        try:
            self._state["log"] = self.task.begin_epoch(epoch, self._passes)
        except (Interrupted, Collapsed, Unread) as stopped:
            if done and self.saves.last != self.position:
                self._save({})
            if isinstance(stopped, Collapsed):
                raise UserError(f"{stopped}; {self.saves.last_saved()}") from stopped
            if isinstance(stopped, Unread):
                raise
            self._stop()

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """What an epoch trains on, from a batch on: each clip once, or drawn evenly over clusters."""
        evenly = self.task.clusters if self.config.data.sampler == "uniform_clusters" else None
        clusters = None if evenly is None else evenly.cpu().numpy()
        masks = self.augment is not None
        return self.loader.epoch(epoch, self.task.views, masks=masks, clusters=clusters, first_batch=first_batch)

    def train_batch(self, batch: Batch) -> None:
        """One step on a full batch, in `train.accumulate` parts; nothing waits for the device."""
        self.options.begin_step()
        views, total = batch.views, torch.zeros_like(self._total)
        if self.augment is not None:
            assert batch.draws is not None
            with self.timer.part("augment"):
                views = self.augment(batch.clip_ids, batch.views, batch.draws, self.task.mixup_centroids)
        for part in range(self.config.train.accumulate):
            rows = self.ranks.batch(batch.sizes, Share(part, self.config.train.accumulate))
            ids = batch.clip_ids[rows]
            loss = self.task.loss(tuple(view[rows] for view in views), ids) * (len(ids) / self.batch_size)
            with self.timer.part("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            if len(ids):  # the mean over no clip is none
                total = total + loss.detach()
        with self.timer.part("optimizer"):
            total = sum_gradients(self.task.parameters(), total, self.ranks, self.config.train.gradients)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(self.step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if not self.config.model.sync_bn:
                first_buffers(self.task.network, self.ranks)
        self.ranks.batch(batch.sizes)
        self.task.after_step(batch.clip_ids)
        self._total = self._total + total
        self._odd = self._odd + (~total.isfinite()).long()
        self.step += 1

    def _rate(self, step: int) -> float:
        return learning_rate(self.config.optim, step, self.loader.full_batches, self.config.train.epochs)

    def _run_network(self, *inputs: Tensor, network: nn.Module | None = None) -> Any:
        """Trainable.run. The last, partial batch gets no graph of its own."""
        self.usage.ran(self.task.network if network is None else network, inputs)
        own = self.task.network if self._partial else self._compiled
        with autocast(self.config, self.options.device):
            return (own if network is None else network)(*inputs)

    def _passes(self, augmented: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """See methods.Passes."""
        batches = self.loader.epoch(PASS_EPOCH, views=1, masks=augmented)
        while True:
            batch, _ = self._agreed.read(batches)
            if self._agreed.stopping:
                raise Interrupted("stopped in a pass over the clips")
            if batch is None:
                return
            try:
                yield self._one_view(batch, augmented)
            finally:  # also where no more is wanted
                self._partial = False

    def _one_view(self, batch: Batch, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """The first view of a batch, which is then the current batch, and partial if it is smaller than others."""
        self.options.begin_step()
        self._partial = sum(batch.sizes) != self.batch_size
        self.ranks.batch(batch.sizes)
        if self.augment is None:
            return batch.clip_ids, batch.views[0]
        if not augmented:
            return batch.clip_ids, self.augment.plain(batch.views[:1])[0]
        assert batch.draws is not None
        return batch.clip_ids, self.augment(batch.clip_ids, batch.views[:1], batch.draws)[0]

    def _end_epoch(self, clips_per_second: float, shown: EpochProgress) -> None:
        """Logs the epoch, saves where that is due, and stops where a signal came."""
        state, epoch, log = self._state, self.position.epoch, self._state["log"]
        timing = {"clips_per_second": clips_per_second, "epoch_seconds": round(state["seconds"], 3)}
        if not state["start"]:  # the time of the start is logged separately from that of an epoch
            timing["start_seconds"] = round(self.loader.start_seconds, 3)
            state["start"] = {"start_seconds": timing["start_seconds"], "first_epoch_seconds": timing["epoch_seconds"]}
        numbers = {"loss": round(state["loss"], 6), "lr": self._rate(self.step - 1), **log, **timing}
        parts = self.timer.read() | self.ranks.seconds()
        used = self.usage.read(parts)
        self.run.log(epoch, {**numbers, **used, "parts": parts})
        state["log"], state["seconds"] = {}, 0.0
        self._agreed.ask()
        last, stopping = epoch == self.config.train.epochs or self.task.finished, self._agreed.stopping
        if last or stopping or epoch == self.options.until_epoch or epoch % self.config.train.save_every == 0:
            self._save({})
        told = f"loss {state['loss']:.3f}{self.task.summary(log)}  {clips_per_second:.0f} clips/s{in_words(used)}"
        shown.epoch(epoch, told)
        if stopping and not last:
            self._stop()

    def _save(self, tensors: dict[str, Tensor]) -> None:
        with self.timer.part("save"):
            self.saves.begin(self.position, tensors, {"step": self.step, "loop": copy.deepcopy(self._state)})

    def _check_finite(self, epoch: int, weights: bool = True) -> None:
        """Raises UserError when the losses, or the weights that they led to, are not finite.

        Ours: the weights too, because a step may break them before any loss shows it, and such a checkpoint is useless.
        """
        fault = f"the loss became {float(self._total)}" if int(self._odd) else None
        if weights and fault is None:
            values = [tensor for tensor in self.task.network.state_dict().values() if tensor.is_floating_point()]
            if not bool(torch.stack([value.isfinite().all() for value in values]).all()):
                fault = "the network's weights are not finite"
        if fault is not None:
            raise not_finite(fault, epoch, self.saves.last_saved(), self.config)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Adds advice when the device is out of memory, and the last save when clips cannot be read or another process
        has ended.

        A signal to all processes of a job, as by Ctrl-C, ends the compiler that torch.compile waits for: then the run
        was stopped, which is not an error.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, self.options.device, self.batch_size, self.config) from error
        except Unread as error:
            saved = self.saves.last_saved()
            raise UserError(f"{error}; {saved}, {self.options.again} once that is fixed") from error
        except RankLost as error:
            raise RankLost(f"{error} after step {self.step}; {self.saves.on_disk()}, {self.options.again}") from error
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException

            if not (self.run.stopping and isinstance(error, TorchDynamoException)):
                raise
            raise Interrupted(f"{self.run.out}: stopped while a graph was compiled; {self.saves.on_disk()}") from error
