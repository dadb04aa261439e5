"""benchmarks/search.py: every method's space, a study that goes on after a stop, what is given up; the ranks of recipes
at two sizes; the page of the store.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import recipes
import results_page
import search
from optuna.trial import TrialState
from scipy.stats import spearmanr
from search_spaces import AXES, COSTLY, SPACES, Factor, usual, values_of

from unfused_fast.config.presets import preset, with_values
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.evaluation.run_store import SCHEMA, read_runs

AXES_TRIED = ["mixup", "rate", "temperature"]


@pytest.fixture
def sets(tones: Path, unlabelled: Path, tmp_path: Path) -> Path:
    """Packed sets: both pools and one of the judged tasks."""
    given = {"pool": unlabelled, "pool_small": unlabelled, "speaker_id": tones, "sound_event": tones}
    for name, source in given.items():
        shutil.copytree(source, tmp_path / "sets" / name)
    return tmp_path / "sets"


def _arguments(sets: Path, out: Path, *more: object) -> list[str]:
    flags = ["--out", out, "--quick", "--device", "cpu", "--method", "simclr", "--axes", *AXES_TRIED, *more]
    return [*map(str, [sets, *flags])]


def _search(monkeypatch: Any, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["search", *_arguments(*arguments)])
    search.main()


@pytest.mark.parametrize("method", SPACES)
def test_each_method_reads_its_axes_one_at_a_time(method: Any) -> None:
    recipe = preset("recommended", "pretrain", method)
    own = {name: usual(AXES[name], recipe) for name in (*SPACES[method], *COSTLY)}
    assert values_of(own, recipe) == {}, "the usual values are the recipe's own"
    for name in own:
        axis = AXES[name]
        for picked in (axis.low, axis.high) if isinstance(axis, Factor) else axis:
            values = values_of({**own, name: picked}, recipe)
            config = with_values(recipe, values)
            assert (picked == own[name]) == (config == recipe), f"{name}={picked}"
    both = values_of({**own, "optimiser": "muon", "rate": 5.0}, recipe)
    assert both["optim.lr"] == pytest.approx(5 * AXES["optimiser"]["muon"]["optim.lr"])  # type: ignore[index]


def test_a_search_reads_no_test_and_prints_the_rank_correlation(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(search, "GLANCES", (1,))
    monkeypatch.setattr(search, "COMPLETE", 2)
    monkeypatch.setattr(search, "best_of", lambda study, _: study.get_trials(states=(TrialState.COMPLETE,)))
    seen = iter([0.5, 0.5, 0.1, 0.6])
    monkeypatch.setattr(search.Search, "glance", lambda *_: next(seen))
    _search(monkeypatch, sets, out, "--trials", 4)
    said = capsys.readouterr().err.replace("\n", " ")
    study = optuna.load_study(study_name="simclr", storage=f"sqlite:///{out / 'search.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[0].params == {"mixup": "0.4", "rate": 1.0, "temperature": 1.0}, "the recipe as it is"
    rows = read_runs([out])
    assert {row["split"] for row in rows if row["split"]} == {"valid"}
    (pruned,) = [row for row in rows if row["state"] == "pruned"]
    assert pruned["run"] == study.trials[2].user_attrs["run"] and "10.0 % after epoch 1" in pruned["reason"]
    small = {row["run"]: [] for row in rows if row["epoch"] == 2 and row["head"] == "linear"}
    for row in rows:
        small.get(row["run"], []).append(row["score"])
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert {trial.user_attrs["run"]: trial.value for trial in complete} == pytest.approx(
        {run: sum(scores) / len(scores) for run, scores in small.items()}
    )
    assert "3 recipes at 2 epochs of pool_small, 60 clips, width 4 and at 3 epochs of pool, 60 clips, width 4, " in said
    for name in ("simclr-history", "simclr-importances", "progress"):
        path = out / f"{name}.png"
        assert path.exists() or (name == "simclr-importances" and len({trial.value for trial in complete}) == 1)

    files = {path: path.stat().st_mtime_ns for path in (*out.glob("runs/*/result.json"), *out.glob("scores/*"))}
    _search(monkeypatch, sets, out, "--trials", 4)
    assert files == {path: path.stat().st_mtime_ns for path in files}, "nothing is made twice"
    with pytest.raises(UserError, match="give the same --axes"):
        _search(monkeypatch, sets, out, "--trials", 5, "--axes", "mixup")

    page = tmp_path / "docs" / "results.md"
    monkeypatch.setattr(sys, "argv", ["results_page", str(out), "--page", str(page)])
    results_page.main()
    runs = (page.with_suffix("") / "runs.md").read_text()
    assert "pruned: 10.0 % after epoch 1" in runs and "rank correlation" in runs
    assert "| log-mel |" in page.read_text() and "| SimCLR |" in page.read_text()
    assert (page.with_suffix("") / "progress.png").read_bytes().startswith(b"\x89PNG")
    written = page.read_text()
    monkeypatch.setattr(sys, "argv", ["results_page", str(page.with_suffix("")), "--page", str(page)])
    results_page.main()  # of the rows it has kept
    assert page.read_text() == written and (page.with_suffix("") / "runs.md").read_text() == runs


def test_a_killed_worker_s_trial_is_taken_up_by_the_next(sets: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What a kill leaves: a trial that is running for Optuna, and no heartbeat; a run with its first epoch."""

    class Killed(BaseException):
        pass

    def killed(self: search.Search, config: Any, trial: Any) -> None:
        self.corpus.pool.pretrain(config, self.corpus.clips("pool_small"), until=1)
        raise Killed

    out = tmp_path / "out"
    monkeypatch.setattr(search, "HEARTBEAT_SECONDS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "trained", killed)
        with pytest.raises(Killed):
            _search(monkeypatch, sets, out, "--trials", 1)
    begun = [path.name for path in out.glob("runs/pretrain-*/")]
    time.sleep(3)
    _search(monkeypatch, sets, out, "--trials", 1, "--retrain", 0)
    trials = optuna.load_study(study_name="simclr", storage=f"sqlite:///{out / 'search.db'}").trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"] and trials[0].params == trials[1].params
    assert begun == [trials[1].user_attrs["run"]], "the run goes on where it was"


def test_a_stopped_trial_is_in_the_queue_again(sets: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("stopped after epoch 1, saved")

    monkeypatch.setattr(search.Search, "mean", lambda *_: 0.5)
    monkeypatch.setattr(search.Search, "trained", stopped)
    with pytest.raises(Interrupted):
        _search(monkeypatch, sets, tmp_path, "--trials", 1)
    stopped_one, waiting = optuna.load_study(study_name="simclr", storage=f"sqlite:///{tmp_path / 'search.db'}").trials
    assert (stopped_one.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    assert waiting.system_attrs["fixed_params"] == stopped_one.params


def test_a_trial_that_cannot_be_trained_counts_and_is_named(sets: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    monkeypatch.setitem(AXES, "mixup", {"fits": {"train.accumulate": 1}, "too many": {"train.accumulate": 64}})
    monkeypatch.setattr(search.Search, "mean", lambda *_: 0.5)
    _search(monkeypatch, sets, out, "--trials", 1, "--retrain", 0)
    study = optuna.load_study(study_name="simclr", storage=f"sqlite:///{out / 'search.db'}")
    study.enqueue_trial({"mixup": "too many", "rate": 1.0, "temperature": 1.0})
    _search(monkeypatch, sets, out, "--trials", 2, "--retrain", 0)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    (failed,) = [row for row in read_runs([out]) if row["state"] == "failed"]
    assert failed["reason"] == study.trials[1].user_attrs["reason"] and "train.accumulate = 64" in failed["reason"]
    assert json.loads(failed["config"])["train.accumulate"] == 64


def _row(run: str, epochs: int, lr: float, seed: int, task: str, score: float, **more: Any) -> dict[str, Any]:
    config = {"train.epochs": epochs, "model.channels": 8 * epochs, "optim.lr": lr}
    facts = {"run": run, "stage": "pretrain", "method": "barlow", "config": json.dumps(config), "seed": seed}
    facts |= {"set": "pool", "epoch": epochs, "clips_seen": 100 * epochs, "seconds": 60.0 * epochs, "state": "done"}
    facts |= {"task": task, "split": "valid", "score": score, "head": "linear", "versions": "{}"}
    return {**dict.fromkeys(SCHEMA.names), **facts, **more}


def test_the_rank_correlation_is_scipy_s(tmp_path: Path) -> None:
    small, large = [0.5, 0.6, 0.55, 0.7, 0.65], [0.55, 0.6, 0.62, 0.8, 0.61]
    rows = []
    for epochs, means in ((1, small), (4, large)):
        for number, mean in enumerate(means):
            for seed, shift in ((0, -0.02), (1, 0.02)):
                for task, apart in (("hero_voice", -0.1), ("speaker_id", 0.1), ("other", 9.0)):
                    run = f"pretrain-{epochs}-{number}-{seed}"
                    rows.append(_row(run, epochs, 1.0 + number, seed, task, mean + shift + apart))
    rows.append(_row("pretrain-9", 4, 9.0, 0, "hero_voice", 1.0))  # at one size only, and without speaker_id
    (line,) = recipes.agreement(rows)
    assert line.recipes == 5 and line.correlation == pytest.approx(spearmanr(small, large).statistic)
    chosen, narrow = recipes.best(recipes.trained(rows))
    assert dict(narrow.settings) == {"optim.lr": "4.0"} and (narrow.epochs, narrow.width) == (1, 8)
    assert dict(chosen.settings) == {"optim.lr": "4.0"} and (chosen.epochs, chosen.width) == (4, 32)
    assert chosen.mean("valid") == pytest.approx({0: 0.78, 1: 0.82})
    # a recipe whose test was read goes before one that is better on validation
    rows += [_row("t", 4, 2.0, 0, task, 0.5, split="test") for task in ("hero_voice", "speaker_id")]
    (chosen,) = (one for one in recipes.best(recipes.trained(rows)) if one.width == 32)
    assert dict(chosen.settings) == {"optim.lr": "2.0"} and chosen.mean("test") == {0: 0.5}
    # `recommended`, without settings of its own, is shown beside it where its test was read at the same size
    plain = json.dumps({"train.epochs": 4, "model.channels": 32})
    of = [_row("r", 4, 0.0, 0, task, 0.4, config=plain) for task in ("hero_voice", "speaker_id")]
    assert len(recipes.best(recipes.trained([*rows, *of]))) == 2
    rows += [*of, *(_row("r", 4, 0.0, 0, row["task"], 0.3, config=plain, split="test") for row in of)]
    chosen, beside = (one for one in recipes.best(recipes.trained(rows)) if one.width == 32)
    assert chosen.settings and not beside.settings and beside.mean("test") == {0: 0.3}
