"""A better recipe of a method, searched by validation: Optuna's TPE over the axes of search_spaces.py.

python benchmarks/search.py CORPUS --out DIR --method barlow --trials 40
python benchmarks/search.py CORPUS --out DIR --method barlow --trials 40 --retrain 6     the best ones at full length
python benchmarks/search.py CORPUS --out DIR --quick                                     do all parts work?

Wants the extra `search`. CORPUS and DIR are as of corpus.py. A trial trains on the small pool, with a narrow encoder,
for a few epochs; the method's own recipe is the first. The same command continues after an interruption, and as often
as it is started at once, so many workers share the study: DIR/search.db, of SQLite, wants a folder that is no network
drive. The test is never read: corpus.py --recipe does so once, for what the search prints in the end.
DIR/runs.parquet has each run, those that were given up and those that failed too; DIR/METHOD-*.png are pictures.

After epochs 2 and 4 k-nearest neighbours (cosine) on three tasks say whether a trial is below the median of the trials
before it at that epoch, and is given up. Ours: they are of a voice's pitch, of a voice and of sounds, and need no
training, so that they cost less than linear heads, which alone say in the end how good a trial is; the methods' own
losses cannot be compared between two recipes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
import optuna
from corpus import BASELINES, QUICK, Corpus, arguments, opened, sizes
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna.visualization import matplotlib as optuna_pictures
from recipes import JUDGED, agreement, agreement_text
from results_page import plot_progress
from search_spaces import AXES, SPACES, Factor, usual, values_of

from unfused_fast.commands.exits import run_app
from unfused_fast.config import Config, preset, with_values
from unfused_fast.console import console, counted
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.evaluation import score_once, write_runs
from unfused_fast.evaluation.run_pool import PooledRun

GLANCES = (2, 4)
"""Epochs after which a trial may be given up."""
GLANCED = ("mandarin_tone", "speaker_id", "sound_event")
"""Tasks that are looked at then."""
COMPLETE = 5
"""Trials that are trained to the end before one is given up."""
HEARTBEAT_SECONDS = 30
"""A trial whose worker has not been heard of for twice as long is put back in the queue."""


@dataclass(frozen=True)
class Search:
    """A study of one method's recipe."""

    corpus: Corpus
    axes: tuple[str, ...]

    @property
    def recipe(self) -> Config:
        """What a trial differs from."""
        return with_values(preset("recommended", "pretrain", self.corpus.method), self.corpus.values)

    def study(self) -> optuna.Study:
        """The study in OUT, new or as it is. Its first trial is the recipe as it is."""
        storage = RDBStorage(
            f"sqlite:///{self.corpus.out / 'search.db'}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            study_name=self.corpus.method,
            storage=storage,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPLETE),
            load_if_exists=True,
        )
        asked = {"axes": [*self.axes], "sizes": settings_of_sizes(self.recipe)}
        if (before := study.user_attrs.get("asked", asked)) != asked:
            raise UserError(
                f"{self.corpus.out}: its study of {self.corpus.method} has {before}, not {asked}; give the same "
                "--axes, --width and --epochs, or another --out"
            )
        study.set_user_attr("asked", asked)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({name: usual(AXES[name], self.recipe) for name in self.axes})
        return study

    def begin(self) -> optuna.Study:
        """The study, and the baselines beside it, by one worker at a time."""
        with FileLock(self.corpus.out / "search.lock"):
            for name, encoder in BASELINES.items():
                width, mean = self.recipe.model.channels, self.mean(encoder)
                console.print(f"search: {name}, width {width}: {100 * mean:.1f} % of validation")
            return self.study()

    def run(self, trials: int) -> optuna.Study:
        """Trains until the study has so many trials that ended."""
        study = self.begin()

        def after(study: optuna.Study, trial: FrozenTrial) -> None:
            write_runs(self.corpus.pool.directory)
            said = trial.user_attrs.get("reason") or f"{100 * (trial.value or 0):.1f} % of validation"
            console.print(f"search: trial {trial.number}, {trial.state.name.lower()}: {said}")
            if len(ended(study)) >= trials:
                study.stop()

        if len(ended(study)) < trials:
            study.optimize(self.trial, callbacks=[after], catch=(UserError,))
        return study

    def trial(self, trial: Trial) -> float:
        """Trains a trial, or gives it up; mean validation of linear heads on the judged tasks."""
        chosen = dict[str, Any]()
        for name in self.axes:
            axis = AXES[name]
            if isinstance(axis, Factor):
                chosen[name] = trial.suggest_float(name, axis.low, axis.high, log=True)
            else:
                chosen[name] = trial.suggest_categorical(name, [*axis])
        try:
            config = with_values(self.recipe, values_of(chosen, self.recipe))
            run = self.trained(config, trial)
            return self.mean(run)
        except UserError as error:
            trial.set_user_attr("reason", str(error))
            raise
        except Interrupted:
            trial.study.enqueue_trial(trial.params)
            raise

    def trained(self, config: Config, trial: Trial) -> PooledRun:
        """The trial's finished run. Raises TrialPruned where it is given up."""
        corpus, shards = self.corpus, self.corpus.clips("pool_small")
        for epoch in (epoch for epoch in GLANCES if epoch < config.train.epochs):
            run = corpus.pool.pretrain(config, shards, until=epoch)
            trial.set_user_attr("run", run.path.name)
            if run.result:
                return run
            found = self.glance(run, epoch)
            trial.report(found, epoch)
            if trial.should_prune():
                reason = f"{100 * found:.1f} % after epoch {epoch}, below the median"
                corpus.pool.give_up(run, f"{reason} of the trials before")
                trial.set_user_attr("reason", reason)
                raise optuna.TrialPruned(reason)
        run = corpus.pool.pretrain(config, shards)
        trial.set_user_attr("run", run.path.name)
        return run

    def glance(self, run: PooledRun, epoch: int) -> float:
        """Mean validation of nearest neighbours, of a run that is paused after an epoch."""
        corpus = self.corpus
        config, names = corpus.evaluation(0), [name for name in corpus.tasks if name in GLANCED] or corpus.tasks[:1]
        return fmean(
            score_once(corpus.out, config, corpus.task(name), run, corpus.pool.options, head="knn", epoch=epoch)[
                "valid"
            ]
            for name in names
        )

    def mean(self, encoder: PooledRun | str) -> float:
        """Mean validation of linear heads on the judged tasks."""
        judged = [task for task in self.corpus.tasks if task in JUDGED]
        return fmean(self.corpus.scores(encoder, task, 0, False)["valid"] for task in judged)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were trained, given up or failed; those that were stopped or killed are in the queue again."""
    ends, trials = (TrialState.COMPLETE, TrialState.PRUNED), study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state in ends or "reason" in trial.user_attrs]


def settings_of_sizes(recipe: Config) -> dict[str, Any]:
    """Width and epochs of a study's trials."""
    return {"width": recipe.model.channels, "epochs": recipe.train.epochs}


def best_of(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The best trials, and last the method's own recipe, where it was trained and is not among them."""
    done = sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -(trial.value or 0))
    return [*done[:count], *(trial for trial in done[count:] if trial.number == 0)]


def pictures(study: optuna.Study, corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """OUT/METHOD-history.png, METHOD-importances.png and progress.png, the last of all methods."""
    matplotlib.use("Agg")
    plots: dict[str, Callable[[optuna.Study], Any]] = {"history": optuna_pictures.plot_optimization_history}
    if len({trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))}) > 1:
        plots["importances"] = optuna_pictures.plot_param_importances
    for name, plot in plots.items():
        figure = plot(study).figure
        figure.savefig(corpus.out / f"{corpus.method}-{name}.png", dpi=130, bbox_inches="tight")
    plot_progress(corpus.out / "progress.png", rows)


def retrain(search: Search, study: optuna.Study, full: Corpus, pool: str, count: int) -> None:
    """The best trials at full length, by validation; prints both, and the correlation of their ranks."""
    whole = Search(full, search.axes)
    for name, encoder in BASELINES.items():
        console.print(f"search: {name} at full width: {100 * whole.mean(encoder):.1f} % of validation")
    for trial in best_of(study, count):
        values = values_of(trial.params, whole.recipe)
        try:
            run = full.pool.pretrain(with_values(whole.recipe, values), full.clips(pool))
            said = f"{100 * whole.mean(run):.1f} % of validation"
        except UserError as error:
            said = str(error)
        text = " ".join(f"{name}={_text(value)}" for name, value in values.items())
        console.print(f"search: trial {trial.number}, {100 * (trial.value or 0):.1f} %, at full length: {said}")
        console.print(f"  --recipe 'trial {trial.number}: {text}'")
    rows = write_runs(full.pool.directory)
    for line in agreement(rows):
        console.print(f"search: {agreement_text(line)}")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main() -> None:
    """Parses, searches, retrains, draws."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=40, help="of the study, all workers and commands together")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=(), help="in place of all of the method's")
    parser.add_argument("--epochs", type=int, default=5, help="of a trial")
    parser.add_argument("--width", type=int, default=32, help="of a trial: channels of the encoder's blocks")
    parser.add_argument(
        "--retrain", type=int, help="how many of the best are trained at full length; none unless given"
    )
    parser.add_argument("--full-epochs", type=int, default=10)
    parser.add_argument("--full-width", type=int, default=64)
    parser.add_argument("--pool", choices=("pool", "pool_small"), default="pool", help="clips at full length")
    given = parser.parse_args()
    if given.method not in SPACES:
        raise UserError(f"--method {given.method}: it has no space in search_spaces.py; use {', '.join(SPACES)}")
    if given.trials < 1:
        raise UserError(f"--trials {given.trials}: want at least 1")
    if given.quick:
        given.epochs, given.width, given.full_epochs, given.full_width = 2, 4, 3, 4
        given.retrain = 3 if given.retrain is None else given.retrain
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are printed as they are
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    given.out.mkdir(parents=True, exist_ok=True)
    corpus = opened(given, {"eval.epochs": QUICK["eval.epochs"]})
    search = Search(corpus, tuple(given.axes or SPACES[given.method]))
    study = search.run(given.trials)
    console.print(f"search: {counted(len(ended(study)), 'trial')} of {given.method} in {corpus.out / 'search.db'}")
    if given.retrain:
        sized: Mapping[str, Any] = {**sizes(given.full_width, given.method), "train.epochs": given.full_epochs}
        full = Corpus(corpus.folder, corpus.out, corpus.method, {**corpus.values, **sized}, corpus.pool)
        retrain(search, study, full, given.pool, given.retrain)
    pictures(study, corpus, write_runs(corpus.pool.directory))


if __name__ == "__main__":
    run_app(main)
