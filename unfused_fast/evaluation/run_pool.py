"""Runs that many experiments share: each in a directory named by a digest of its inputs, so that none is made twice.

DIR/<stage>-<digest>/       a run directory; finished when it has a result.json
DIR/<stage>-<digest>.json   what it is made of, and where it ended without a result: why; run_store.py reads both
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from unfused_fast.checkout import commit
from unfused_fast.config import Config, Stage, flatten
from unfused_fast.distributed import RankLost
from unfused_fast.errors import Interrupted, UserError, unreadable
from unfused_fast.evaluation.report import writing
from unfused_fast.json_files import read_json
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import distill, holdout_input, labels_digest, linear, pretrain
from unfused_fast.training import Options, Paused, config_digest, quietly, versions, write_json


def again(options: Options) -> str:
    """How a command continues that was stopped."""
    return f"run the same command again{', without --overwrite,' if options.overwrite else ''} to continue"


@contextmanager
def continuing(out: Path, options: Options) -> Iterator[None]:
    """Around a command that keeps finished runs and scores in OUT. Raises Interrupted after Ctrl-C outside of training,
    which says it itself.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; {again(options)}") from None


@dataclass(frozen=True)
class PooledRun:
    """A finished run, or one that is paused."""

    path: Path
    digest: str
    """sha256 of stage, settings, data, and the digest of the run that it started from."""
    result: dict[str, Any]
    """Its result.json; empty where it stands paused."""


@dataclass(frozen=True)
class RunPool:
    """Finished runs are reused, unfinished ones resumed. Ours: neither order nor names of experiments matter."""

    directory: Path
    options: Options
    holdout: float | None = None
    """As of linear.linear."""
    failed: dict[str, UserError] = field(default_factory=dict)
    """Digest -> why a run failed: the same command does not repeat a failed run."""

    def pretrain(self, config: Config, shards: ShardSet, until: int | None = None) -> PooledRun:
        """Stage 1, or no more of it than `until` epochs. Raises UserError where it cannot be run or diverges, as the
        others do.
        """
        return self._run("pretrain", config, shards, "", partial(pretrain, config, shards), until)

    def distill(self, config: Config, shards: ShardSet, teacher: PooledRun, given: Tensor | None = None) -> PooledRun:
        """Stage 2, from a run of stage 1; `given`: as of distill.distill."""
        source = teacher.digest + ("" if given is None else labels_digest(given))
        return self._run("distill", config, shards, source, partial(distill, config, shards, teacher.path, given=given))

    def linear(self, config: Config, shards: ShardSet, encoder: PooledRun) -> PooledRun:
        """Stage 3, of a run of stage 1 or 2."""
        source = encoder.digest + "".join(f" {name} {value}" for name, value in holdout_input(self.holdout).items())
        run = partial(linear, config, shards, str(encoder.path), holdout=self.holdout)
        return self._run("linear", config, shards, source, quietly()(run))

    def give_up(self, run: PooledRun, reason: str) -> None:
        """Notes that a paused run is not worth more time; giving its settings again continues it."""
        self._note(run.path, {**read_json(record_of(run.path)), "state": "pruned", "reason": reason})

    def _run(
        self,
        stage: Stage,
        config: Config,
        shards: ShardSet,
        source: str,
        run: Callable[..., dict[str, Any]],
        until: int | None = None,
    ) -> PooledRun:
        made_of = {"stage": stage, "config": flatten(config), "shards": shards.manifest.digest, "from": source}
        digest = config_digest(made_of)
        if digest in self.failed:
            raise self.failed[digest]
        out = self.directory / f"{stage}-{digest[:16]}"
        train = shards.manifest.splits.get("train")
        facts = {"digest": digest, **made_of, "set": shards.name, "clips": None if train is None else train.clips}

        def begin() -> dict[str, Any] | None:
            result = _found(out)
            if result is None:
                self._note(out, {**facts, "commit": commit(), "versions": versions()})
            elif not record_of(out).exists():  # made before there were records
                self._note(out, facts)
            return result

        result = self.options.ranks.first(begin)
        if result is None:
            options = replace(self.options, resume=True, again=again(self.options), overwrite=False, until_epoch=until)
            try:
                result = run(out=out, options=options)
            except RankLost:
                raise
            except Paused:
                result = {}
            except UserError as error:
                self.failed[digest] = error
                self._note(out, {**read_json(record_of(out)), "state": "failed", "reason": str(error)})
                raise
        return PooledRun(out, digest, result)

    def _note(self, out: Path, facts: dict[str, Any]) -> None:
        if self.options.ranks.leads:
            with writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                write_json(record_of(out), facts)


def record_of(out: Path) -> Path:
    """What the pool notes of a run, beside its directory."""
    return out.with_name(f"{out.name}.json")


def _found(out: Path) -> dict[str, Any] | None:
    """The result of a finished run. Deletes what is left of one that was killed before its description was written."""
    result = finished(out)
    if result is None and out.exists() and not (out / "config.json").exists():
        shutil.rmtree(out)
    return result


def finished(folder: Path, name: str = "result.json") -> dict[str, Any] | None:
    """The folder's result; None where there is none. Raises UserError where it is damaged, as one without `seconds`."""
    path = folder / name
    try:
        if not path.is_file():
            return None
        result = dict(read_json(path))
        float(result["seconds"])
        return result
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable(path, error, f"delete {folder} to run it again") from error
