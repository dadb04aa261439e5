"""`unfused-fast evaluate`, `lape` and `tasks`: tables of encoders; part of the command line in cli.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from unfused_fast.commands.flags import (
    TRAINED,
    Compile,
    ConfigFlags,
    Holdout,
    Json,
    Overwrite,
    ProcessFlags,
    Shards,
    Teacher,
    with_flags,
)
from unfused_fast.commands.options import read_by, refuse_unread, refuse_unread_by_heads, run_options
from unfused_fast.commands.output import open_set, show
from unfused_fast.config import BASELINES, MethodName
from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from unfused_fast.config import Config

Fractions = Annotated[
    str,
    typer.Option(
        "--label-fraction", help="Shares of the train labels to use, separated by commas, such as 0.01,0.1,1."
    ),
]


@dataclass(frozen=True, kw_only=True)
class TableFlags(ConfigFlags):
    """Flags that all commands with tables of encoders have."""

    holdout: Holdout = None

    def methods(self, names: list[MethodName], epochs: int | None) -> tuple[dict[str, Config], Config]:
        """Configs of methods for pre-training, alike in what they have in common, and of the linear heads."""
        from unfused_fast.config import with_values
        from unfused_fast.evaluation import common_values

        own = {name: self.read_by(name, names).config("pretrain", several=True, method=name) for name in names}
        linear = self.read_by("decar-v2", names).config("linear", several=True, **{"train.epochs": epochs})
        return {name: with_values(config, common_values(linear)) for name, config in own.items()}, linear

    def read_by(self, method: MethodName, among: list[MethodName]) -> Self:
        """With the settings of flags.read_by."""
        from unfused_fast.config import read_settings

        in_file = () if self.config_file is None else read_settings(self.config_file).values
        return replace(self, settings=read_by(self.settings, method, among, in_file))


@dataclass(frozen=True, kw_only=True)
class SharedTableFlags(ProcessFlags, TableFlags):
    """And those of what several processes do together."""


@with_flags(SharedTableFlags)
def evaluate(
    shards: Shards,
    encoders: Annotated[
        list[str],
        typer.Option(
            "--encoder",
            help=f"{TRAINED}. Written as RUN or NAME=RUN; runs with the same NAME are repetitions of one encoder. "
            "Repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Directory for the table and the predictions.", show_default=False)
    ],
    flags: SharedTableFlags,
    knn: Annotated[
        bool, typer.Option("--knn", help="Also classify by k nearest neighbours; k is eval.neighbours.")
    ] = False,
    folds: Annotated[bool, typer.Option("--folds", help="Cross-validate over the published folds of the set.")] = False,
    fractions: Fractions = "1",
    seeds: Annotated[
        int, typer.Option(help="Repetitions, each with another seed for heads, label subsets and the random encoder.")
    ] = 1,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also evaluate a random encoder and log-mel statistics.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate frozen encoders side by side: accuracy or mAP, with intervals.

    Heads are linear classifiers and, with --knn, nearest neighbours. Intervals are bootstraps over test recordings;
    standard errors are over seeds and folds. Every pair of encoders is compared by a paired bootstrap and McNemar's
    test. Every prediction is saved. Several processes compute the features together.
    """
    flags.start_processes()
    named = named_runs(encoders, baselines)
    chosen = fractions_of(fractions)
    from unfused_fast.evaluation import SELECTED_ON_TEST, Plan, evaluation_tables
    from unfused_fast.evaluation import evaluate as run_evaluation

    plan = Plan(("linear", "knn") if knn else ("linear",), chosen, folds, seeds, flags.holdout)
    config = flags.config("linear")
    if baselines and config.eval.features == "projector":
        raise UserError("eval.features = projector: the baselines have no projection head; add --no-baselines")
    refuse_unread(flags.named("linear"), config, [run for runs in named.values() for run in runs])
    refuse_unread_by_heads(flags.settings)
    options = run_options(flags.device, None, False, overwrite, timeout=flags.timeout)
    with options.ranks:
        result = run_evaluation(config, open_set(shards), named, plan, out, options)
    if not options.ranks.leads:
        return
    sentences = [f"predictions of every test recording: {out / 'predictions.parquet'}"]
    if result["select"] == "best_test":
        sentences.insert(0, SELECTED_ON_TEST)
    show(result, flags.as_json, evaluation_tables(result), sentences)


def named_runs(given: list[str], baselines: bool) -> dict[str, list[str]]:
    """`NAME=RUN` and `RUN` as name -> runs, the baselines first.

    Raises UserError for a run that is given twice, however its path is written, and for one named as a baseline.
    """
    named: dict[str, list[str]] = {name: [name] for name in BASELINES} if baselines else {}
    places: set[Path] = set()
    for item in given:
        name, sign, run = item.partition("=")
        if not sign or Path(item).exists():
            name = run = item
        if not name or not run:
            raise UserError(f"--encoder {item}: want RUN, or NAME=RUN")
        if name in BASELINES and run != name:
            raise UserError(f"--encoder {item}: {name} is the name of a baseline; give the run another NAME")
        runs, place = named.setdefault(name, []), Path(run).resolve()
        if run in BASELINES and run in runs:
            continue
        if run not in BASELINES and place in places:
            raise UserError(f"--encoder {item}: {run} is given twice; name each run once")
        places.add(place)
        runs.append(run)
    return named


def fractions_of(given: str) -> tuple[float, ...]:
    """`0.01,0.1,1` -> numbers, each once. Raises UserError for what is no number."""
    try:
        return tuple(dict.fromkeys(float(part) for part in given.split(",")))
    except ValueError:
        raise UserError(f"--label-fraction {given}: want numbers between commas, such as 0.01,0.1,1") from None


def tasks(as_json: Json = False) -> None:
    """List the tasks of the papers: data set, classes, split, and published results."""
    from unfused_fast.config import DECAR_TASKS, LAPE_TASKS, TASKS

    tables, columns = list[Any](), ["name", "title", "data set", "classes", "seconds", "split"]
    for title, listed in (("LAPE, by UnFuSeD Table 1", LAPE_TASKS), ("DECAR, Tables 1 to 3", DECAR_TASKS)):
        rows = [
            [
                task.name,
                task.title,
                " ".join([task.dataset, *(f"{key}={value}" for key, value in task.options.items())]),
                f"{task.classes:,}",
                f"{task.seconds:g}",
                task.split,
            ]
            for task in listed
        ]
        numbers = [
            [task.title, *("" if value is None else f"{value:.1f}" for value in task.results.values())]
            for task in listed
        ]
        printed = "accuracy in %, as printed", ["task", *listed[0].results], numbers
        tables += [(title, columns, rows), printed]
    unclear = [f"{task.name}: {task.unclear}" for task in TASKS.values() if task.unclear]
    show([asdict(task) for task in TASKS.values()], as_json, tables, unclear)


@with_flags(SharedTableFlags)
def lape(
    data_dir: Annotated[
        Path,
        typer.Argument(
            help="Folder of the data sets, each a shard set or in the layout of its publisher.", show_default=False
        ),
    ],
    teacher: Teacher,
    out: Annotated[Path, typer.Option("--out", help="Directory for sets, runs and the table.", show_default=False)],
    flags: SharedTableFlags,
    names: Annotated[
        str | None,
        typer.Option(
            "--tasks", help="Task names, separated by commas (see: unfused-fast tasks).", show_default="LAPE's eleven"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of stages 2 and 3.")] = 1,
    encoder: Annotated[
        Literal["full", "student3"] | None,
        typer.Option(
            help="Evaluate the whole distilled encoder, or its first three blocks, which are the paper's student.",
            show_default="full",
        ),
    ] = None,
    fractions: Fractions = "1",
    epochs: Annotated[int | None, typer.Option(help="Epochs of distillation.", show_default="preset's")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Other methods to compare, a column of the table for each: names separated by commas, or all (see: "
            "unfused-fast compare --help). They are pre-trained on --pretrain-on.",
            show_default="none",
        ),
    ] = None,
    pretrain_on: Annotated[
        str | None,
        typer.Option(help="Shard set on which --methods are pre-trained; its labels are not read.", show_default=False),
    ] = None,
    pretrain_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of --methods on --pretrain-on.", show_default="100")
    ] = None,
    compile_: Compile = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes for packing.", show_default="one a core")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the LAPE benchmark: stages 2 and 3 on every task whose data are in DATA_DIR.

    One table shows the results beside the paper's. After a stop at any moment the same command continues. Stage 2 crops
    clips to the length of each task, except with --preset authors or --set data.crop_seconds. With the --out of a
    `compare`, its methods are not trained again. Several processes train and evaluate each task together.
    """
    if (methods is None) != (pretrain_on is None) or (methods is None and pretrain_epochs is not None):
        raise UserError("--methods and --pretrain-on belong together: which methods to train, and on which clips")
    from unfused_fast.config import chosen_methods, chosen_tasks

    chosen, others = chosen_tasks(names), chosen_methods(methods) if methods is not None else []
    own = flags.read_by("decar-v2", others)
    distill = own.config("distill", epochs, several=True)
    flags.start_processes(partitions=distill.data.partitions)
    from unfused_fast.evaluation import LapePlan, Plan, continuing, sentences, tables
    from unfused_fast.evaluation import lape as run_lape

    configs, _ = flags.methods(others, pretrain_epochs)
    plan = LapePlan(
        distill,
        own.config("linear", None, several=True, **{"eval.encoder": encoder, "train.epochs": pretrain_epochs}),
        Plan(fractions=fractions_of(fractions), holdout=flags.holdout),
        seeds,
        flags.preset != "authors" and "data.crop_seconds" not in flags.named("distill"),
        configs,
        None if pretrain_on is None else open_set(pretrain_on),
    )
    options = run_options(flags.device, compile_, False, overwrite, timeout=flags.timeout)
    with continuing(out, options), options.ranks:
        summary = run_lape(data_dir, teacher, out, chosen, plan, options, workers)
    if not options.ranks.leads:
        return
    show(summary, flags.as_json, tables(summary), sentences(summary))
    if not any(row["state"] == "done" for row in summary["tasks"]):
        raise UserError(
            f"{data_dir}: no task was evaluated; {out / 'lape.md'} says for each where to get it, or what went wrong"
        )
