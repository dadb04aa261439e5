"""The table of tasks against rows of the papers copied by hand, the papers' own averages, and the adapters."""

from __future__ import annotations

import json

import pytest
from outcomes import Cli

from unfused_fast.config.tasks import DECAR_COLUMNS, DECAR_TASKS, LAPE_COLUMNS, LAPE_TASKS, TASKS, chosen_tasks
from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import DATASETS

TABLE_1 = """
SC-V1      --   77.3 82.3 86.1 93.6 94.0 91.6 94.4
LBS        --   89.0 91.0 90.0 95.5 95.7 92.5 97.0
VC         40.1 28.9 25.6 31.2 42.5 45.3 33.0 50.0
NS         74.1 61.3 70.7 66.3 74.7 75.0 69.8 76.4
US8K       79.1 69.1 70.1 71.2 81.2 82.7 73.2 83.2
"""
AVERAGE = dict(zip(LAPE_COLUMNS, (None, 66.9, 71.2, 72.1, 79.8, 80.4, 75.8, 81.6), strict=True))
TABLES_2_AND_3 = {
    "Speaker Id. (LBS)": [4.2, 94.6, 62.5, 97.0, 96.6, 96.2, 97.3, 97.0],
    "Speech Emotion": [52.3, 61.8, 60.5, 62.4, 62.1, 64.0, 63.1, 62.4],
    "Music Instrument": [23.6, 78.6, 59.9, 78.4, 77.3, 77.5, 78.1, 78.4],
}


def test_rows_of_the_papers() -> None:
    by_title = {task.title: task for task in LAPE_TASKS}
    for line in TABLE_1.split("\n")[1:-1]:
        title, *numbers = line.split()
        expected = [None if number == "--" else float(number) for number in numbers]
        assert list(by_title[title].results.values()) == expected
    decar = {task.title: list(task.results.values()) for task in DECAR_TASKS}
    assert {title: decar[title] for title in TABLES_2_AND_3} == TABLES_2_AND_3


def test_the_columns_give_the_averages_that_the_paper_prints() -> None:
    assert len(LAPE_TASKS) == 11
    for column in LAPE_COLUMNS[1:]:
        numbers = [task.results[column] for task in LAPE_TASKS]
        mean = sum(number for number in numbers if number is not None) / 11
        assert mean == pytest.approx(AVERAGE[column], abs=0.06), column
    assert [task.title for task in LAPE_TASKS if task.results["BYOL-A"] is None] == ["SC-V1", "LBS", "IC", "BSD", "TUT"]


def test_decar_prints_its_pic_column_twice() -> None:
    assert len(DECAR_TASKS) == 9
    for task in DECAR_TASKS:
        assert tuple(task.results) == DECAR_COLUMNS
        assert task.results["PIC"] == task.results["DECAR, fine-tuned"]


def test_tasks_are_what_their_adapters_make() -> None:
    for task in TASKS.values():
        dataset = DATASETS[task.dataset]
        values = dataset.chosen(task.options)
        variants = [
            variant
            for variant in dataset.variants
            if all(values.get(key) == value for key, value in variant.options.items())
        ]
        wanted = 1251 if task.name == "decar-vc" else task.classes
        assert variants and variants[0].classes == wanted, task.name
    assert [task.name for task in TASKS.values() if task.by_folds] == ["us8k"]


def test_tasks_are_chosen_by_name() -> None:
    assert chosen_tasks(None) == list(LAPE_TASKS)
    assert [task.title for task in chosen_tasks("us8k, decar-ic")] == ["US8K", "Speech Emotion"]
    with pytest.raises(UserError, match=r"--tasks us8: no such task; did you mean us8k\?"):
        chosen_tasks("us8")
    with pytest.raises(UserError, match="--tasks 'us8k,,vc': a name between the commas is empty"):
        chosen_tasks("us8k,,vc")


def test_the_command_lists_them(cli: Cli) -> None:
    listed = json.loads(cli("tasks", "--json").out)
    assert [task["name"] for task in listed] == list(TASKS)
    (us8k,) = [task for task in listed if task["name"] == "us8k"]
    assert (us8k["dataset"], us8k["classes"], us8k["by_folds"]) == ("urbansound8k", 10, True)
    assert us8k["results"]["UnFuSeD"] == 83.2
    shown = cli("tasks").out
    assert "SC-V2(35)" in shown and "Birdsong Detection" in shown and "1,211" in shown
