"""The page of study.py: tables, and sentences that say no more than the tables show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study_search import best_of

from unfused_fast.evaluation.report import markdown, mean_and_error
from unfused_fast.evaluation.table import TABLE_COLUMNS, result_table

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; with more the last is kept, a little too wide."""
FEWEST_CLIPS = 6
"""A change of fewer test clips is never claimed: five of five are chance to a sign test (p = 0.06), six are not."""
PAIR_COLUMNS = ("first", "second", "difference", "95 % over test clips", "95 % over seeds", "shown")
DEVIATION_COLUMNS = (
    "set",
    "stage",
    "in place of recommended's",
    "preset",
    "change of test",
    "95 % over seeds",
    "trouble",
)
SEARCH_COLUMNS = ("set", "encoder", "purity", "NMI", "valid", "above stage 1", "95 % over seeds", "test", "trouble")
HIDDEN = {"method", "labels", "over folds"}
"""Columns of the evaluation's table that are the same in every row here."""


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds by Student's t; None for fewer than three, and for seeds that all agree.

    Ours: scores are counts of few clips, and seeds that agree by chance would give an interval of no width.
    """
    mean, error = mean_and_error(values) if len(values) > 2 else (0.0, None)
    if error is None or error < 1e-9:
        return None
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * error
    return mean - half, mean + half


def shown(interval: Sequence[float], by_seed: Sequence[float]) -> bool:
    """Whether a difference is one: both intervals, over test clips and over seeds, leave out 0, on the same side.

    Ours: either alone says nothing of the other source of chance; fewer than three seeds show nothing.
    """
    over_seeds = seed_interval(by_seed)
    return over_seeds is not None and _side(interval) != 0 and _side(interval) == _side(over_seeds)


def verdict(task: str, pair: dict[str, Any]) -> str | None:
    """One sentence on a difference; None where none is shown."""
    over_seeds = seed_interval(pair["by_seed"])
    if over_seeds is None or not shown(pair["interval"], pair["by_seed"]):
        return None
    verb = "beats" if pair["difference"] > 0 else "is worse than"
    return (
        f"{pair['first']} {verb} {pair['second']} on {task} by {100 * abs(pair['difference']):.1f} points "
        f"(95 % over test clips {_span(pair['interval'])}, over {len(pair['by_seed'])} seeds {_span(over_seeds)})."
    )


def verdicts(target: dict[str, Any]) -> list[str]:
    """What one set shows, and one sentence that names all that it does not."""
    said = [(pair, verdict(target["task"], pair)) for pair in target["pairs"]]
    alike = "; ".join(f"{pair['first']} and {pair['second']}" for pair, sentence in said if sentence is None)
    sentences = [sentence for _, sentence in said if sentence is not None]
    return sentences + ([f"Not told apart on {target['task']}: {alike}."] if alike else [])


def deviation_verdict(line: dict[str, Any]) -> str | None:
    """One sentence on a changed field; None where seeds or test clips do not show that it changes anything."""
    interval = seed_interval(line["by_seed"])
    mean = 100 * mean_and_error(line["by_seed"])[0] if line["by_seed"] else 0.0
    if interval is None or _side(interval) == 0 or abs(mean) / 100 * line["test_clips"] < FEWEST_CLIPS:
        return None
    verb = "raises" if mean > 0 else "lowers"
    aside = ", because it chooses by the test itself" if line["settings"] == "eval.select=best_test" else ""
    return (
        f"`{line['settings']}` ({' and '.join(line['presets'])}) {verb} test on {line['task']} by "
        f"{abs(mean):.1f} points (95 % over seeds {_span(interval)}){aside}."
    )


def page(study: dict[str, Any]) -> str:
    """The content of study.json as markdown."""
    size, parts = study["size"], ["# The embedded recordings"]
    if study["quick"]:
        parts.append("**A check that everything works, with tiny encoders and one epoch: no results.**")
    parts.append(
        f"Written by `benchmarks/study.py`: {size['seeds']} seed(s), {study['pretraining_clips']:,} clips for stage 1, "
        f"which reads no labels. {_sized(study)}{_given(study)}Everything else is as the presets have it "
        f"(docs/recipe.md). On {study['device']} ({study['cores']} cores), {study['versions']}, commit "
        f"{study['commit']}, {study['date']}."
    )
    parts.append(
        "Every encoder is frozen and judged alike: linear heads by the preset `recommended`, their rate chosen by "
        "validation, test read once. `random` is an untrained encoder, one a seed. Intervals over test clips are "
        "percentile bootstraps of the mean over seeds, those over seeds Student's t. A difference counts as shown "
        "where both leave out 0, with three seeds or more that do not all agree; nothing is corrected for many "
        "comparisons."
    )
    for target in study["targets"]:
        parts += _target(target)
    parts.append("## What the tables show")
    parts.append(_listed([sentence for target in study["targets"] for sentence in verdicts(target)]))
    if study["failed"]:
        parts += ["Runs that failed and are left out:", _listed(study["failed"])]
    if study["searched"]:
        parts += _searched(study["searched"])
    if study["deviations"]:
        parts += _deviations(study["deviations"])
    return "\n\n".join(parts) + "\n"


def _target(target: dict[str, Any]) -> list[str]:
    kept = [number for number, column in enumerate(TABLE_COLUMNS) if column not in HIDDEN]
    rows = [[texts[number] for number in kept] for texts in result_table("", target["rows"])[2]]
    clips = ", ".join(f"{count:,} {name}" for name, count in target["clips"].items())
    chance = f" (chance {100 / target['classes']:.1f} %)" if target["metric"] == "accuracy" else ""
    pairs = [
        [
            pair["first"],
            pair["second"],
            f"{100 * pair['difference']:+.1f}",
            _span(pair["interval"]),
            _span(seed_interval(pair["by_seed"])),
            "yes" if shown(pair["interval"], pair["by_seed"]) else "no",
        ]
        for pair in target["pairs"]
    ]
    return [
        f"## {target['task']}",
        f"{target['classes']} classes{chance}; clips: {clips}. Test {target['metric']} in %; multiply-accumulates for "
        "0.95 s.",
        markdown([TABLE_COLUMNS[number] for number in kept], rows),
        "Differences first - second, in points:",
        markdown(PAIR_COLUMNS, pairs),
    ]


def _deviations(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for line in lines:
        change = _mean(line["by_seed"], "+")
        presets, trouble = ", ".join(line["presets"]), _trouble(line)
        over_seeds = _span(seed_interval(line["by_seed"]))
        rows.append([line["task"], line["stage"], line["settings"], presets, change, over_seeds, trouble])
    said = [sentence for line in lines if (sentence := deviation_verdict(line)) is not None]
    return [
        "## What the presets' deviations cost",
        "One field of one stage at a time, where it can be changed alone, all others as `recommended`: points of test "
        "accuracy, mean ± standard error over the same seeds. Stage pretrain is judged by its own encoder, the others "
        "by that of stage 2. Below the table stand changes whose interval leaves out 0 and which are of "
        f"{FEWEST_CLIPS} test clips or more; of as many rows, one in twenty would have such an interval by chance.",
        markdown(DEVIATION_COLUMNS, rows),
        _listed(said) if said else "No single deviation is shown to change anything.",
    ]


def _searched(sets: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for one in sets:
        rows.append(
            [one["task"], "stage 1", "", "", _mean(one["stage1"]["valid"]), "", "", _mean(one["stage1"]["test"]), ""]
        )
        for row in one["rows"]:
            name = "stage 2, recommended" if row["settings"] == "base" else row["settings"]
            labels = [_share(row["purity"]), _share(row["nmi"])]
            gain = [_mean(row["gain"], "+"), _span(seed_interval(row["gain"]))]
            rows.append([one["task"], name, *labels, _mean(row["valid"]), *gain, _mean(row["test"]), _trouble(row)])
        bound, name = one["labels"], "the labels themselves as pseudo-labels"
        gain, trouble = [_mean(bound["gain"], "+"), _span(seed_interval(bound["gain"]))], _trouble(bound)
        rows.append([one["task"], name, "1.00", "1.00", _mean(bound["valid"]), *gain, _mean(bound["test"]), trouble])
    return [
        "## Could stage 2 be better than stage 1?",
        "One field of stage 2 at a time, all others as `recommended`: accuracy in %, mean ± standard error over the "
        "same seeds. Validation judges, beside that of stage 1's encoder of the same seed; test is shown, and chooses "
        "nothing. Purity and NMI of the pseudo-labels are against the labels of the same clips, which stage 2 does not "
        "read; more clusters are purer by themselves. Nothing is corrected for many comparisons.",
        markdown(SEARCH_COLUMNS, rows),
        _listed([*(search_verdict(one) for one in sets), _on_all(sets)]),
    ]


def search_verdict(one: dict[str, Any]) -> str:
    """What a search shows on one set: its best by validation, and which settings are told from stage 1."""
    best = best_of(one["rows"])
    if best is None:
        return f"On {one['task']} every run of stage 2 failed."
    name = "`recommended`" if best["settings"] == "base" else f"`{best['settings']}`"
    interval = seed_interval(best["gain"])
    over_seeds = f" (95 % over seeds {_span(interval)})" if interval else ""
    told = {
        side: [row["settings"] for row in one["rows"] if _told(row) == side and row["settings"] != "base"]
        for side in (1, -1)
    }
    sentences = [
        f"On {one['task']} {name} has the best validation of stage 2, {_mean(best['gain'], '+')} points beside stage "
        f"1{over_seeds}."
    ]
    sentences += [
        f"{how} than stage 1 by the interval over seeds: {', '.join(f'`{settings}`' for settings in told[side])}."
        for side, how in ((1, "Better"), (-1, "Worse"))
        if told[side]
    ]
    if (bound := one["labels"])["gain"]:
        sentences.append(
            "With the labels themselves as pseudo-labels, an upper bound and no UnFuSeD, stage 2 would be at "
            f"{_mean(bound['gain'], '+')} points of validation and {_mean(bound['test_gain'], '+')} of test beside "
            "stage 1: no better clustering can be expected to win more."
        )
    return " ".join(sentences)


def _on_all(sets: Sequence[dict[str, Any]]) -> str:
    better = [{row["settings"] for row in one["rows"] if _told(row) == 1} for one in sets]
    found = sorted(set.intersection(*better))
    if not found:
        return "By that interval no setting of stage 2 is better than stage 1 on every set."
    return f"By that interval better than stage 1 on every set: {', '.join(f'`{name}`' for name in found)}."


def _told(row: dict[str, Any]) -> int:
    interval = seed_interval(row["gain"])
    return 0 if interval is None else _side(interval)


def _trouble(row: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(row["failed"]))


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Per cent, with the standard error; empty where nothing was measured."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{100 * mean:{sign}.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _share(values: Sequence[float]) -> str:
    return f"{mean_and_error(values)[0]:.2f}" if values else ""


def _sized(study: dict[str, Any]) -> str:
    stages = "; ".join(
        f"{stage} {' '.join(f'{field}={value}' for field, value in values.items())}"
        for stage, values in study["sized"].items()
        if values
    )
    return (
        f"The size sets, for every preset: `{stages}` (widths for AudioNTT alone, of which model.channels=64 is the "
        "paper's). "
    )


def _given(study: dict[str, Any]) -> str:
    values = " ".join(f"{name}={value}" for name, value in study["values"].items())
    return f"Set for all: `{values}`. " if values else ""


def _side(interval: Sequence[float]) -> int:
    """1 above 0, -1 below, 0 where the interval holds 0."""
    low, high = interval
    return 1 if low > 0 else -1 if high < 0 else 0


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
