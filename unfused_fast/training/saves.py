"""When a run saves, what a checkpoint holds, and what happens when a save fails.

A checkpoint is the state of the network (`model.*`), of its optimiser, of the random generators, of the augmenter and
of the task outside its network, under the names of `state_dict`; and in JSON the position and `notes`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unfused_fast.clustering import BANK, DamagedBank
from unfused_fast.console import console
from unfused_fast.data import Augmenter
from unfused_fast.errors import UserError
from unfused_fast.methods import Trainable
from unfused_fast.training.checkpoint import Position, collect, refuse_misfit, restore, save_checkpoint, to_host
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run


class Saves:
    """The checkpoints of a run: one at a time, written by rank 0 while training continues.

    A failed save is reported, and the next one is tried; only the last one must not fail. As a context manager it waits
    for what is being written when the block ends.
    """

    def __init__(
        self, run: Run, task: Trainable, optimizer: Optimizer, augment: Augmenter | None, options: Options
    ) -> None:
        self._run, self._task, self._optimizer, self._augment = run, task, optimizer, augment
        self._every, self._ranks = options.save_every, options.ranks
        self._saved = self.last = Position(0)
        self._when = time.monotonic()
        self._writing: Future[Path] | None = None

    def __enter__(self) -> Saves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):  # after a second Ctrl-C nobody waits
            self._try()

    def due(self, step: int) -> bool:
        """Whether to save within the epoch, after so many steps of the run."""
        if self._every.steps is not None:
            return step % self._every.steps == 0
        return self._every.seconds is not None and time.monotonic() - self._when >= self._every.seconds

    def begin(self, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Saves at a position, once the save before it is done: state is copied at once, and written in a thread."""
        self._try()
        if self._augment is not None:
            tensors = self._augment.state() | tensors  # of all ranks
        self._begin(position, tensors, notes)
        self.last, self._when = position, time.monotonic()

    def _begin(self, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """At the end of an epoch the bank's generation and then the checkpoint that refers to it; within one, or while
        the bank is refilled, a checkpoint that holds the bank. The other ranks give rank 0 their rows.
        """
        task, bank = self._task, self._task.bank
        whole = not position.batch and not task.refilling
        notes = {**copy.deepcopy(task.notes()), **notes}
        notes |= {"order": self._run.order, "ranks": self._ranks.world_size, "seconds": self._run.seconds}
        notes["optimizer"] = type(self._optimizer).__name__
        tensors = {**collect(task.network, self._optimizer), **state_outside_network(task), **tensors}
        rows = None
        if bank is not None:
            assert task.clusters is not None
            notes["bank"] = "generation" if whole else "here"
            rows = None if whole else bank.tensors(task.clusters)
        copied = to_host(tensors if self._ranks.leads else {})

        def write() -> Path:
            held = {} if rows is None else rows()
            return save_checkpoint(self._run.checkpoints, position, copied() | held, notes)

        if bank is not None and whole:
            assert task.clusters is not None
            folder = self._run.out / BANK
            write = bank.snapshot(folder, position.epoch, task.clusters, step=notes["step"], then=write)
        if self._ranks.leads:
            self._start(write)

    def _start(self, write: Callable[[], Path]) -> None:
        """Writes in a daemon thread: a second Ctrl-C ends at once, and an interrupted write leaves earlier files."""
        self._writing = future = Future[Path]()

        def run() -> None:
            try:
                future.set_result(write())
            except BaseException as error:
                future.set_exception(error)

        Thread(target=run, name="checkpoint", daemon=True).start()

    def settle(self) -> None:
        """Waits until rank 0 has written, on every rank: once one process ends, its launcher ends the others. Raises
        UserError where the last save failed.
        """
        self._ranks.first(self._wait)
        self._wait()

    def last_saved(self) -> str:
        """The last save, as text, on every rank; waits for the last save."""
        return str(self._ranks.first(self.on_disk))

    def on_disk(self) -> str:
        """The last save that this process knows of, as text."""
        self._try()
        return f"{self._saved} is the last one saved" if any(self._saved) else "nothing was saved"

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        self._saved = self.last

    def _try(self) -> None:
        try:
            self._wait()
        except UserError as error:
            self.last = self._saved
            console.print(f"not saved, training continues: {error}", style="yellow")

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Restores all state, with the bank, from the newest sound checkpoint. Returns its tensors and notes."""
        task, bank = self._task, self._task.bank
        tensors, notes = self._run.load(self._fault)
        # another one starts anew: the momentum of one is not that of another, even where both have the same name for it
        kind = type(self._optimizer).__name__
        restore(tensors, task.network, self._optimizer if notes.get("optimizer", kind) == kind else None)
        task.load_notes(notes)
        own = state_outside_network(task)
        refuse_misfit(own, {name: tensors[name] for name in own if name in tensors})
        task.load_state_dict({name: tensors[name] for name in own}, strict=False)
        if self._augment is not None:
            self._augment.load_state(tensors)
        if bank is not None and notes["bank"] == "here":
            bank.load_tensors(tensors)
        elif bank is not None:
            bank.load_others(self._run.out / BANK, notes["epoch"])
        self._saved = self.last = Position(notes["epoch"], notes["batch"])
        return tensors, notes

    def _fault(self, notes: dict[str, Any]) -> str | None:
        """Why a checkpoint or its generation of the bank cannot be used; the generation is read."""
        if (fault := self._task.fault(notes)) is not None:
            return fault
        if self._task.bank is not None and notes["bank"] != "here":
            try:
                self._task.bank.load(self._run.out / BANK, notes["epoch"])
            except DamagedBank as error:
                return error.fact
        return None


def state_outside_network(task: torch.nn.Module) -> dict[str, Tensor]:
    """State of a task outside its network."""
    return {name: tensor for name, tensor in task.state_dict().items() if not name.startswith("network.")}
