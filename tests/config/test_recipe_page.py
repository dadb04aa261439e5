"""docs/recipe.md against the presets, and `config --diff` against docs/recipe.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import PresetName, Stage, flatten, preset, with_values

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
PRESETS: tuple[PresetName, ...] = ("recommended", "paper", "authors", "decar-v1")


def rows() -> dict[tuple[Stage, str], list[Any]]:
    """(stage, option) -> its value in each preset, read as --set reads it."""
    found: dict[tuple[Stage, str], list[Any]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        stage = re.search(r"\(`train (\w+)`\)", section.splitlines()[0])
        for line in section.splitlines() if stage else []:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 6 and cells[1].startswith("`"):
                option = cells[1].strip("`")
                texts = ["" if cell == "none" else cell for cell in cells[2:]]
                together = {"model.prediction": "linear"} if option in ("cluster.algo", "model.prediction") else {}
                together |= {"pseudo.seconds": 12} if option == "pseudo.crop" else {}
                together |= {"bank.fill": "pass"} if option == "data.sampler" else {}
                assert stage is not None
                stages: dict[str, Stage] = {name: name for name in get_args(Stage)}
                values = [flatten(with_values(Config(), {**together, option: text}))[option] for text in texts]
                found[stages[stage[1]], option] = values
    return found


def test_the_page_has_the_presets_values() -> None:
    found = rows()
    assert len(found) > 90
    for (stage, option), values in found.items():
        assert values == [flatten(preset(name, stage))[option] for name in PRESETS], (stage, option)


def test_the_page_has_every_option_in_which_presets_differ() -> None:
    for stage in get_args(Stage):
        presets = [flatten(preset(name, stage)) for name in PRESETS]
        differing = {option for option in presets[0] if any(each[option] != presets[0][option] for each in presets)}
        assert differing <= {option for of, option in rows() if of == stage}


@pytest.mark.parametrize("name", ["paper", "authors", "decar-v1"])
def test_config_diff_names_each_changed_row(cli: Callable[..., Any], name: PresetName) -> None:
    done = cli("config", "--preset", name, "--diff", "recommended", "--json")
    assert done.code == 0, done.err
    shown = {(line["stage"], line["field"]): (line[name], line["recommended"]) for line in json.loads(done.out)}
    column = PRESETS.index(name)
    wanted = {row: (values[column], values[0]) for row, values in rows().items() if values[column] != values[0]}
    assert shown.keys() == wanted.keys()
    for row, values in wanted.items():
        assert shown[row] == tuple(list(value) if isinstance(value, tuple) else value for value in values), row


def test_the_page_explains_where_recommended_leaves_the_paper(cli: Callable[..., Any]) -> None:
    """And what that costs is what docs/results.md has measured."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Where `recommended` leaves the paper")[1].split("\n## ")[0]
    results = (PAGE.parent / "results.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    told = {(cells[0], cells[1].strip("`")): cells for cells in lines if len(cells) == 6 and cells[1].startswith("`")}
    differing = json.loads(cli("config", "--diff", "paper", "--json").out)
    assert set(told) == {(line["stage"], line["field"]) for line in differing}
    for (stage, option), (*_, paper, _, _, measured) in told.items():
        value = "()" if paper == "none" else paper
        found = re.findall(rf"\| {stage} \| {re.escape(option)}={re.escape(value)} \| [a-z, ]+ \| ([^|]+) \|", results)
        assert ", ".join(found) == ("" if measured.startswith("no:") else measured)
