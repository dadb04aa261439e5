"""Where a run's numbers go beside log.jsonl: TensorBoard, Weights & Biases, MLflow. Each is imported where it is asked
for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from unfused_fast.errors import UserError
from unfused_fast.json_files import read_json
from unfused_fast.optional import importing, present
from unfused_fast.shards.sets.shard_files import replace_file

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "unfused-fast"
"""Project of W&B and experiment of MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""
MOST_PARAMS = 100
"""In one batch. Source: MLflow's REST API, log-batch."""
IDS = "trackers.json"
"""In a run directory: tracker -> its own id of the run, which a resumed run continues."""


class Tracker(Protocol):
    """Something that shows numbers of runs. What it cannot write it says by an OSError; training continues."""

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """The numbers of an epoch."""

    def end(self, result: Mapping[str, Any] | None) -> None:
        """The run has ended: with its result, or None where it was stopped or failed."""


def parse_trackers(text: str) -> tuple[TrackerName, ...]:
    """`tensorboard,wandb` -> names, each once. Raises UserError for an unknown one, or one whose package is missing."""
    names = [name.strip() for name in text.split(",")]
    known: tuple[TrackerName, ...] = get_args(TrackerName)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--log-to {text}: {unknown[0]!r} is no tracker; want {', '.join(known)}, or several with commas between"
        )
    for name in set(names) - {"tensorboard"}:
        with _importing(name):
            if not present(name):
                raise ModuleNotFoundError(name=name)
    return tuple(name for name in known if name in names)


def _importing(name: str) -> AbstractContextManager[None]:
    title = {"wandb": "Weights & Biases", "mlflow": "MLflow"}[name]
    return importing(name, title, f"--log-to {name}", f"pip install '.[{name}]'")


def open_tracker(name: TrackerName, out: Path, description: Mapping[str, Any]) -> Tracker:
    """Begins, or continues, the tracker's run of the run directory `out`; `description`: see Run.

    Raises UserError: its package is missing, or it cannot begin.
    """
    opened: dict[TrackerName, Callable[[Path, Mapping[str, Any]], Tracker]]
    opened = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
    return opened[name](out, description)


class TensorBoard:
    """OUT/tensorboard. Ours, not SummaryWriter: its thread ends on a full disk."""

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        self._folder = out / "tensorboard"
        self._file: Any = None

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Begins a file where there is none, or the last write failed: what follows half an event is not read."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])
        events, writer = [Event(step=epoch, summary=scalars)], self._file
        self._file = None
        if writer is None:
            now = time.time_ns()
            self._folder.mkdir(exist_ok=True)
            writer = RecordWriter((self._folder / f"events.out.tfevents.{now // 10**9}.{now}").open("wb"))
            # what an earlier part of the run wrote of this epoch and later ones is left out
            begin = Event(step=epoch, session_log=SessionLog(status=SessionLog.START))
            events = [Event(file_version="brain.Event:2"), begin, *events]
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        writer.flush()
        self._file = writer

    def end(self, result: Mapping[str, Any] | None) -> None:
        """It shows nothing of results."""


class WeightsAndBiases:
    """A run of Weights & Biases, of the project WANDB_PROJECT; its files are in OUT/wandb. WANDB_MODE=offline sends
    nothing (`wandb sync` later), other variables are W&B's own.
    """

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        with _importing("wandb"):
            import wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=out,
                id=(known := _ids(out).get("wandb")),
                name=os.environ.get("WANDB_NAME", out.name),
                job_type=description["stage"],
                config=_settings(description),
                resume=None if known is None else "allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"--log-to wandb: cannot begin ({error}); give WANDB_API_KEY, or set WANDB_MODE=offline"
            ) from error
        _keep_id(out, "wandb", self._run.id)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Sent by a process of its own, which tries again where there is no network."""
        self._run.log(dict(numbers), step=epoch)

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Numbers of the result become the run's summary."""
        self._run.summary.update(numbers_in(result or {}))
        self._run.finish(exit_code=0 if result is not None else 1)


class MLflow:
    """A run of MLflow, on the server or in the folder MLFLOW_TRACKING_URI, by default OUT/mlruns, in the experiment
    MLFLOW_EXPERIMENT_NAME.
    """

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        with _importing("mlflow"):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        self._metric, self._fault = Metric, MlflowException
        place = os.environ.get("MLFLOW_TRACKING_URI", (out / "mlruns").absolute().as_uri())
        if place.startswith("file:") or "://" not in place:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse a folder without it
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self._client, known = MlflowClient(place), _ids(out).get("mlflow")
            if known is None:
                experiment = self._client.get_experiment_by_name(name)
                group = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
                tags = {"stage": description["stage"]}
                self._id = self._client.create_run(group, run_name=out.name, tags=tags).info.run_id
                settings = [Param(key, str(value)) for key, value in _settings(description).items()]
                for first in range(0, len(settings), MOST_PARAMS):
                    self._client.log_batch(self._id, params=settings[first : first + MOST_PARAMS])
            else:
                self._id = known
                self._client.update_run(known, status="RUNNING")
        except (MlflowException, OSError) as error:
            raise UserError(
                f"--log-to mlflow: cannot begin ({_first_line(error)}); check MLFLOW_TRACKING_URI, or leave it out"
            ) from error
        _keep_id(out, "mlflow", self._id)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """The server has them when this returns."""
        now = int(time.time() * 1000)
        try:
            self._client.log_batch(
                self._id, metrics=[self._metric(name, value, now, epoch) for name, value in numbers.items()]
            )
        except self._fault as error:
            raise OSError(f"MLflow: {_first_line(error)}") from error

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Numbers of the result become metrics whose names begin with result."""
        numbers = {f"result.{name}": value for name, value in numbers_in(result or {}).items()}
        if numbers:
            self.write(0, numbers)
        try:
            self._client.set_terminated(self._id, "KILLED" if result is None else "FINISHED")
        except self._fault as error:
            raise OSError(f"MLflow: {_first_line(error)}") from error


def numbers_in(values: Mapping[str, Any]) -> dict[str, float]:
    """What of an epoch's values is a number."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings, and what the run was made from."""
    return {**description["config"], "stage": description["stage"], "shards": description["shards"]}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _ids(out: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, TypeError):  # without it another run begins
        return {str(name): str(own) for name, own in dict(read_json(out / IDS)).items()}
    return {}


def _keep_id(out: Path, name: str, own: str) -> None:
    replace_file(out / IDS, json.dumps({**_ids(out), name: own}).encode())
