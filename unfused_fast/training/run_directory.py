"""A run directory: what it records, what may be written over, what --resume accepts; the signals that stop a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from unfused_fast.config import Config, flatten
from unfused_fast.console import console
from unfused_fast.data import set_statistics
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import read_json
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training.checkpoint import Position, checkpoints_in, load_checkpoint, write_json
from unfused_fast.training.options import Options
from unfused_fast.training.run_description import config_digest, device_name, read_description, versions
from unfused_fast.training.run_differences import differences, in_words, order_of_batches
from unfused_fast.training.run_lock import LOCK, RunLock

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a run once the step is done and saved."""
DESCRIPTION = "config.json"
BEGINNING = {LOCK, f"{DESCRIPTION}.new"}
"""What a run that was killed before its description was written may leave."""


SAME_SIGNAL_SECONDS = 0.3
"""Within which a signal that comes again is the same: sent to a process, and to what started it and passes it on."""


class Run:
    """A run directory: config.json, log.jsonl, TensorBoard, checkpoints, result.json; and the signals that stop it.

    As a context manager it lets go of the directory when the block ends.
    """

    def __init__(
        self, out: Path, stage: str, config: Config, shards: ShardSet, options: Options, **inputs: Any
    ) -> None:
        """Looks at the directory, and touches nothing before start() but the lock of a run that is there. Raises
        UserError when it holds another run, one that --resume does not fit or that is at work, or anything else.
        """
        self.out, self.stage, self.stopping = out, stage, False
        self.checkpoints = out / "checkpoints"
        for name, given in inputs.items():
            if Path(given).resolve() == out.resolve():
                raise UserError(f"{out}: it is the {name} of this run, which would be lost; choose another --out")
        description: dict[str, Any] = {
            "stage": stage,
            "config": flatten(config),
            "shards": shards.manifest.digest,
            "log_mel": set_statistics(shards, config.frontend),
            "inputs": inputs,
            "versions": versions(),
            "device": device_name(options.device),
        }
        _refuse_unwritable(out)
        recorded = read_description(out)
        self._lock, self._resumed_with = RunLock(out), dict[str, Any]()
        self._was_free, self._differs = recorded is None, False
        self.order = json.loads(json.dumps(order_of_batches(description)))
        """For the checkpoints; see order_of_batches."""
        if recorded is not None:
            self._lock.take()
        try:
            begun = self._begun(recorded, description, options)
        except BaseException:
            self._lock.release()
            raise
        self._going_on = begun and options.resume
        self.resumed = self._going_on and self.saved
        self._started, self._description = time.perf_counter(), description
        self._board: Any = None
        self._unwritten: list[str] = []
        self._unusable: list[Path] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _begun(self, recorded: dict[str, Any] | None, description: dict[str, Any], options: Options) -> bool:
        """Whether the directory holds a run with something to lose: one that stopped before its first checkpoint has
        nothing. Raises UserError where it may not be used as `options` ask.
        """
        begun = recorded is not None and (self.saved or (self.out / "result.json").exists())
        if recorded is None and self.out.exists() and not {path.name for path in self.out.iterdir()} <= BEGINNING:
            raise UserError(f"{self.out}: it exists and is not a run of unfused-fast; choose another --out")
        if recorded is not None and begun and options.resume:
            self._compare(recorded, json.loads(json.dumps(description)), options)
        elif begun and not options.overwrite:
            raise UserError(
                f"{self.out}: already contains a run; use --resume to continue it, --overwrite to start again, or "
                "another --out"
            )
        return begun

    def _compare(self, recorded: dict[str, Any], wanted: dict[str, Any], options: Options) -> None:
        """Notes what is different about the run that goes on. Raises UserError unless that is to be."""
        found = differences(self.out, recorded, wanted)
        if found and not options.resume_anyway:
            raise UserError(
                f"{self.out}: --resume only continues the same run, but {in_words(found)}; use the same values, "
                "another --out, or --resume-anyway"
            )
        before, self._differs = list(recorded.get("resumed_with", [])), bool(found)
        if found:
            console.print(f"{self.out}: going on anyway, though {in_words(found)}", style="yellow")
            before.append({name: {"was": was, "now": now} for name, (was, now) in found.items()})
        if before:
            self._resumed_with = {"resumed_with": before}

    def start(self) -> None:
        """Makes the directory, or takes it over; called when all that could be wrong with the inputs was looked at.

        Raises UserError when it cannot be written, or when another process made a run there since it was looked at.
        """
        try:
            self.out.resolve().mkdir(parents=True, exist_ok=True)
            self._lock.take()
            if self._was_free and (self.saved or (self.out / "result.json").exists()):
                raise UserError(
                    f"{self.out}: another process made a run there meanwhile; use --resume to go on with it, or "
                    "another --out"
                )
            if not self._going_on:
                self._clear()
            (self.out / "result.json").unlink(missing_ok=True)  # there only where a finished run goes on anyway
            for path in self._unusable:  # they would count among the last ones, which are kept
                path.with_suffix(".safetensors").unlink(missing_ok=True)
                path.unlink()
            write_json(self.out / DESCRIPTION, {**self._description, **self._resumed_with})
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({cause(error)}); choose another --out") from error

    def _clear(self) -> None:
        """The description goes last: what is left by a kill before is still known as a run."""
        for path in sorted(self.out.iterdir(), key=lambda path: path.name == DESCRIPTION):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    @property
    def saved(self) -> bool:
        """Whether the directory holds a checkpoint."""
        return any(self.checkpoints.glob("epoch-*.json"))

    def result(self) -> dict[str, Any] | None:
        """What an earlier, finished run wrote, when --resume finds nothing left to do and nothing different."""
        path = self.out / "result.json"
        if not self._going_on or self._differs or not path.exists():
            return None
        console.print(f"{self.out}: finished already")
        try:
            return dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise unreadable(path, error, "delete it, and give the same command again") from error

    def load(
        self, fault: Callable[[dict[str, Any]], str | None] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The newest sound checkpoint of this run; says which newer ones were damaged. Later log lines are dropped.

        `fault`: see load_checkpoint.
        """

        def unusable(state: dict[str, Any]) -> str | None:
            position = Position(state["epoch"], state.get("batch", 0))
            if "loop" not in state:
                return f"{self.checkpoints / position.name}: an earlier version wrote it, with too little to go on from"
            if position.batch and state["order"] != self.order:
                return f"{self.checkpoints / position.name}: it lies within an epoch of other batches"
            return fault(state) if fault is not None else None

        tensors, state, damaged = load_checkpoint(self.checkpoints, unusable)
        position = Position(state["epoch"], state["batch"])
        self._unusable = [path for path in checkpoints_in(self.checkpoints) if path.stem > position.name]
        for sentence in damaged:
            console.print(f"{sentence}; going on from {position}", style="yellow")
        log = self.out / "log.jsonl"
        if log.exists():
            lines = log.read_bytes().splitlines()
            replace_file(log, b"".join(line + b"\n" for line in lines if _epoch_of(line) <= state["epoch"]))
        console.print(f"{self.out}: going on after {position}")
        return tensors, state

    def last_logged(self) -> dict[str, Any]:
        """The numbers of the last epoch in log.jsonl; none where it is empty."""
        log = self.out / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return dict(json.loads(lines[-1])) if lines else {}

    def log(self, epoch: int, values: dict[str, Any]) -> None:
        """One line of log.jsonl and the numbers to TensorBoard. What a full disk refuses is told; lines are kept and
        written with the next one.
        """
        self._unwritten.append(json.dumps({"epoch": epoch, **values}) + "\n")
        log = self.out / "log.jsonl"
        size = log.stat().st_size if log.exists() else 0
        try:
            with log.open("a", encoding="utf-8") as file:
                file.writelines(self._unwritten)
            self._unwritten.clear()
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=epoch)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, epoch)
        except OSError as error:
            if self._unwritten and log.exists():
                os.truncate(log, size)  # without half a line
            self._board = None  # its thread has ended; the next line begins another file
            self._tell_unlogged(error)

    def _tell_unlogged(self, error: BaseException) -> None:
        console.print(f"not logged, training goes on: {self.out}: {cause(error)}", style="yellow")

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes result.json and says where the run is."""
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._tell_unlogged(error)
        result = {
            "stage": self.stage,
            **result,
            "seed": self._description["config"]["train.seed"],
            "epochs": self._description["config"]["train.epochs"],
            "config_digest": config_digest(self._description["config"]),
            "data_digest": self._description["shards"],
            "seconds": round(time.perf_counter() - self._started, 2),
            "run": str(self.out),
        }
        write_json(self.out / "result.json", result)
        console.print(f"{self.stage}: wrote {self.out} ({result['seconds']:.1f} s)")
        return result

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGUSR1 (which SLURM sends before it takes a job off) let the step finish and set
        `stopping`; the same one of the first two again ends at once. What ends before its first save leaves no
        directory.
        """
        came = dict[int, float]()

        def stop(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if number in came and number != signal.SIGUSR1:
                if now - came[number] < SAME_SIGNAL_SECONDS:
                    return
                raise KeyboardInterrupt
            came[number] = now
            if self.stopping:
                return
            self.stopping = True
            console.print("stopping after this step; press Ctrl-C again to stop immediately", style="yellow")

        try:
            before = {number: signal.signal(number, stop) for number in STOPPING}
        except ValueError:  # not the main thread: whoever owns it also owns the signals
            before = {}
        unhandled = threading.excepthook

        def failed(given: threading.ExceptHookArgs) -> None:
            """TensorBoard writes in a thread of its own, which a full disk ends."""
            if isinstance(given.exc_value, OSError):
                self._tell_unlogged(given.exc_value)
            else:
                unhandled(given)

        threading.excepthook = failed
        try:
            yield
        except BaseException:
            self._discard_unsaved()
            raise
        finally:
            threading.excepthook = unhandled
            for number, handler in before.items():
                signal.signal(number, handler)

    def _discard_unsaved(self) -> None:
        if not self.saved and not (self.out / "log.jsonl").exists():
            shutil.rmtree(self.out.resolve(), ignore_errors=True)


def _epoch_of(line: bytes) -> float:
    """Epoch of a line of log.jsonl; infinity for one that a full disk cut short."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _refuse_unwritable(out: Path) -> None:
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "may not be written to" if nearest.is_dir() else "is a file, but a run is a directory"
        raise UserError(f"{nearest}: it {reason}; choose another --out")
