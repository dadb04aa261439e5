"""A run directory: its content, what may be overwritten, what --resume accepts; the signals that stop a run.

Of several ranks rank 0 alone reads and writes it, and sends the others the values that they need.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from unfused_fast.config import Config, flatten
from unfused_fast.console import console
from unfused_fast.data import set_statistics
from unfused_fast.errors import Interrupted, UserError, cause
from unfused_fast.launch import LAUNCH, set_handler
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training.checkpoint import Position, checkpoints_in, load_checkpoint, write_json
from unfused_fast.training.options import Options
from unfused_fast.training.run_record import (
    RunLog,
    config_digest,
    device_name,
    differences,
    in_words,
    order_of_batches,
    other_tensors,
    read_description,
    read_result,
    versions,
)

LOCK = "run.lock"
"""Locked by the training process, whose id and host it contains; the file remains when the process ends."""
DESCRIPTION = "config.json"
BEGINNING = {LOCK, f"{DESCRIPTION}.new"}
"""Files of a run that was killed before its description was written."""
ON_FIRST = "bank."
"""Beginning of the names of a checkpoint's tensors that have the rows of all ranks: each rank gets its own later."""
SAME_SIGNAL_SECONDS = 0.3
"""Seconds within which a repeated signal counts as one: a launcher may forward what the process got too."""


class Run:
    """A run directory: config.json, log.jsonl, trackers, checkpoints, result.json; and the signals that stop it.

    As a context manager it releases the directory when the block ends. The signals end the block at once with
    Interrupted, except inside signals().
    """

    def __init__(
        self, out: Path, stage: str, config: Config, shards: ShardSet, options: Options, **inputs: Any
    ) -> None:
        """Locks the directory, and changes nothing in it before start(). Raises UserError when it holds another run, a
        run that --resume does not match or that another process trains, or other files.
        """
        self.out, self.stage, self.stopping, self._ranks = out, stage, False, options.ranks
        self._again = options.again
        self.checkpoints = out / "checkpoints"
        description = {
            "stage": stage,
            "config": flatten(config),
            "shards": shards.manifest.digest,
            "log_mel": set_statistics(shards, config.frontend),
            "inputs": inputs,
            "versions": versions(),
            "device": device_name(options.device),
        }
        self._description: dict[str, Any] = json.loads(json.dumps(description))  # as it is read back
        self._launch = os.environ.get(LAUNCH)
        if self._launch is not None:
            self._description["launch"] = self._launch
        self.order = order_of_batches(self._description)
        """For the checkpoints; see order_of_batches."""
        self._lock = FileLock(out / LOCK, timeout=0, thread_local=False)
        self._begun = time.perf_counter()
        self._seconds_before = 0.0
        self.run_log = RunLog(out, options.log_to)
        self._unusable = list[Path]()
        self._continues = False
        try:
            opened = self._ranks.first(lambda: self._open(options))
        except BaseException:
            self._release()
            raise
        self.resumed: bool = opened["resumed"]
        self._result: dict[str, Any] | None = opened["result"]

    def __enter__(self) -> Run:
        self._before = set_handler(signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.run_log.close()
        self._release()
        if isinstance(error, KeyboardInterrupt):
            done = "what was saved before is kept" if self.saved else "nothing is saved yet"
            raise Interrupted(f"{self.out}: stopped at once, {done}; {self._again}") from error

    def _open(self, options: Options) -> dict[str, Any]:
        """Whether the run resumes, and the result of a finished one. Raises UserError where `options` do not permit
        using the directory.
        """
        for name, given in self._description["inputs"].items():
            if Path(given).resolve() == self.out.resolve():
                raise UserError(f"{self.out}: it is the {name} of this run, which would be lost; choose another --out")
        recorded = read_description(self.out)
        if recorded is None and self.out.is_dir() and not {path.name for path in self.out.iterdir()} <= BEGINNING:
            raise UserError(f"{self.out}: it exists and is not a run of unfused-fast; choose another --out")
        self._take()
        recorded = read_description(self.out)  # another process may have made one meanwhile
        if recorded is not None and self._launch is not None and recorded.get("launch") == self._launch:
            options = replace(options, resume=True, overwrite=False)
        result = None if options.overwrite else read_result(self.out)
        begun = recorded is not None and (self.saved or result is not None)  # without either there is nothing to lose
        if begun and not options.resume and not options.overwrite:
            raise UserError(
                f"{self.out}: already contains a run; use --resume to continue it, --overwrite to start again, or "
                "another --out"
            )
        self._continues = begun and options.resume
        differs = False
        if self._continues:
            assert recorded is not None
            differs = self._compare(recorded, options)
        return {"resumed": self._continues and self.saved, "result": None if differs or not self._continues else result}

    def _take(self) -> None:
        try:
            self.out.resolve().mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            (self.out / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        except Timeout:
            owner = (self.out / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
            raise UserError(
                f"{self.out}: {owner} is using this run directory; wait for it, end it, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({cause(error)}); choose another --out") from error

    def _release(self) -> None:
        """Deletes the directory where nothing was written."""
        if self._lock.is_locked:
            if self.out.exists() and {path.name for path in self.out.iterdir()} == {LOCK}:
                shutil.rmtree(self.out.resolve())
            self._lock.release()

    def _compare(self, recorded: dict[str, Any], options: Options) -> bool:
        """Whether the resumed run differs; what differs is recorded. Raises UserError without --resume-anyway."""
        defaults = json.loads(json.dumps(flatten(Config())))  # of fields that the recorded run lacks, as in from_flat
        found = differences(self.out, {**recorded, "config": defaults | recorded["config"]}, self._description)
        if "method.name" in found:  # the state of one method is not another's
            was, now = found["method.name"]
            raise UserError(f"{self.out}: a run of --method {was}, not {now}; use --method {was}, or another --out")
        if found and not options.resume_anyway:
            advice = "" if other_tensors(found) else ", or --resume-anyway"
            raise UserError(
                f"{self.out}: --resume only continues the same run, but {in_words(found)}; use the same values, or "
                f"another --out{advice}"
            )
        before = list(recorded.get("resumed_with", []))
        if found:
            console.print(f"{self.out}: resuming anyway, although {in_words(found)}", style="yellow")
            before.append({name: {"was": was, "now": now} for name, (was, now) in found.items()})
        if before:
            self._description["resumed_with"] = before
        return bool(found)

    def start(self) -> None:
        """Empties the directory, or resumes the run in it; called after all checks of the inputs. Waits for the other
        ranks. Raises UserError when it cannot be written.
        """
        self._ranks.first(self._start)

    def _start(self) -> None:
        try:
            if not self._continues:
                self._clear()
            (self.out / "result.json").unlink(missing_ok=True)  # exists only where a finished run is resumed anyway
            for path in self._unusable:  # else they would count among the checkpoints kept
                path.with_suffix(".safetensors").unlink(missing_ok=True)
                path.unlink()
            write_json(self.out / DESCRIPTION, self._description)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({cause(error)}); choose another --out") from error
        self.run_log.open(self._description)

    def _clear(self) -> None:
        """The description is deleted last, so that after a kill the rest is still recognised as a run."""
        for path in sorted(self.out.iterdir(), key=lambda path: path.name == DESCRIPTION):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    @property
    def saved(self) -> bool:
        """Whether the directory holds a checkpoint."""
        return any(self.checkpoints.glob("epoch-*.json"))

    @property
    def seconds(self) -> float:
        """Spent on the run so far, before it was resumed too; not what was lost with a kill."""
        return round(self._seconds_before + time.perf_counter() - self._begun, 2)

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, when --resume finds nothing left to do and no differences."""
        if self._result is not None:
            console.print(f"{self.out}: already finished")
        return self._result

    def load(
        self, fault: Callable[[dict[str, Any]], str | None] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest sound checkpoint of this run, on every rank; newer ones that cannot be used are reported, and
        deleted by start(). Later log lines are dropped.

        `fault`: see load_checkpoint; called on rank 0, which alone gets the tensors of ON_FIRST.
        """
        read = dict[str, Tensor]()

        def unusable(state: dict[str, Any]) -> str | None:
            position = Position(state["epoch"], state["batch"])
            if position.batch and state["order"] != self.order:
                return f"{self.checkpoints / position.name}: it was saved within an epoch with different batches"
            return fault(state) if fault is not None else None

        def load() -> dict[str, Any]:
            tensors, state, damaged = load_checkpoint(self.checkpoints, unusable)
            read.update(tensors)
            position = Position(state["epoch"], state["batch"])
            self._unusable = [path for path in checkpoints_in(self.checkpoints) if path.stem > position.name]
            for sentence in damaged:
                console.print(f"{sentence}; resuming from {position}", style="yellow")
            self.run_log.drop_after(state["epoch"])
            console.print(f"{self.out}: resuming after {position}")
            return state

        state, count = dict(self._ranks.first(load)), self._ranks.world_size
        self._seconds_before = state["seconds"]
        if (before := state["ranks"]) != count:
            console.print(
                f"{self.out}: on {count} ranks now, {before} before: same batches, but sums are rounded differently",
                style="yellow",
            )
        kept = {name: read.pop(name) for name in list(read) if name.startswith(ON_FIRST)}
        return kept | self._ranks.tensors_from_first(read if self._ranks.leads else None), state

    def log(self, epoch: int, values: dict[str, Any]) -> None:
        """Adds the numbers of an epoch to the log, on rank 0."""
        if self._ranks.leads:
            self.run_log.append(epoch, values)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes result.json, reports the run's path, and returns what was written."""
        return dict(self._ranks.first(lambda: self._finish(result)))

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        result = {
            "stage": self.stage,
            **result,
            "seed": self._description["config"]["train.seed"],
            "epochs": self._description["config"]["eval.epochs" if self.stage == "linear" else "train.epochs"],
            "config_digest": config_digest(self._description["config"]),
            "data_digest": self._description["shards"],
            "seconds": self.seconds,
            "run": str(self.out),
        }
        write_json(self.out / "result.json", result)
        self.run_log.close(result)
        console.print(f"{self.stage}: wrote {self.out} ({result['seconds']:.1f} s)")
        return result

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and the other signals of launch.STOPPING let the step finish and set `stopping`; a second Ctrl-C or
        SIGTERM ends at once. A run that ends before its first save leaves no directory.
        """
        came = dict[int, float]()

        def stop(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if number in came and number in (signal.SIGINT, signal.SIGTERM):
                if now - came[number] < SAME_SIGNAL_SECONDS:
                    return
                raise KeyboardInterrupt
            came[number] = now
            if self.stopping:
                return
            self.stopping = True
            again = "; press Ctrl-C again to stop immediately" if number == signal.SIGINT else ""
            console.print(f"stopping after this step{again}", style="yellow")

        before = set_handler(stop)
        try:
            yield
        except BaseException:
            if self._ranks.leads and not self.saved and not self.run_log.path.exists():
                self.run_log.close()  # first: trackers write into the directory
                shutil.rmtree(self.out.resolve(), ignore_errors=True)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
