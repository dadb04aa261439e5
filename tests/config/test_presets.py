"""Presets against docs/recipe.md, which is written by hand from the papers and the authors' code; `config --diff`."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from outcomes import Cli

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import PresetName, Stage, flatten, preset, with_values
from unfused_fast.models.audiontt import build_encoder

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
PRESETS: tuple[PresetName, ...] = ("recommended", "paper", "authors", "decar-v1")
SAME_IN_ALL = {
    "aug.mixup.memory": 2048,
    "aug.rrc.canvas_time": 1.5,
    "aug.rrc.freq_scale": (0.6, 1.5),
    "aug.rrc.time_scale": (0.6, 1.5),
    "frontend.hop_samples": 160,
    "frontend.n_fft": 1024,
    "model.dim": 2048,
    "optim.momentum": 0.9,
    "optim.trust": 0.001,
}
"""Not on the page: BYOL-A's augmentation, DECAR's front end, the paper's section 4, the authors' LARC."""


@cache
def rows() -> dict[tuple[Stage, str], list[Any]]:
    """(stage, option) -> its value in each preset, read as --set reads it."""
    found: dict[tuple[Stage, str], list[Any]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        stage = re.search(r"\(`train (\w+)`\)", section.splitlines()[0])
        for line in section.splitlines() if stage else []:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 6 and cells[1].startswith("`"):
                option = cells[1].strip("`")
                texts = ["" if cell == "none" and option == "eval.lr_grid" else cell for cell in cells[2:]]
                together = {"method.name": "decar-v1"} if option == "cluster.algo" else {}
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
    presets = {(stage, name): flatten(preset(name, stage)) for stage in get_args(Stage) for name in PRESETS}
    for (stage, option), values in found.items():
        assert values == [presets[stage, name][option] for name in PRESETS], (stage, option)


def test_the_page_has_every_option_that_a_preset_changes() -> None:
    for stage in get_args(Stage):
        on_page, plain = {option for of, option in rows() if of == stage}, flatten(Config())
        for values in (flatten(preset(name, stage)) for name in PRESETS):
            changed = {option for option, value in values.items() if value != plain[option]}
            unread = {"optim.warmup_epochs"} if values["optim.schedule"] == "constant" else set()
            assert changed <= on_page | unread
            assert {option: values[option] for option in SAME_IN_ALL} == SAME_IN_ALL


@pytest.mark.parametrize("name", PRESETS)
def test_fine_tuning_augments_as_the_presets_pre_training_does(name: PresetName) -> None:
    assert preset(name, "finetune").aug == preset(name, "pretrain").aug


def test_the_authors_encoder_of_distillation_has_a_third_connected_layer() -> None:
    for name, parameters in {"authors": 9_518_208, "paper": 5_321_856}.items():
        assert sum(weights.numel() for weights in build_encoder(preset(name, "distill")).parameters()) == parameters


@pytest.mark.parametrize("name", ["paper", "authors", "decar-v1"])
def test_config_diff_names_each_changed_row(cli: Cli, name: PresetName) -> None:
    done = cli("config", "--preset", name, "--diff", "recommended", "--json")
    assert done.code == 0, done.err
    shown = {(line["stage"], line["field"]): (line[name], line["recommended"]) for line in json.loads(done.out)}
    column = PRESETS.index(name)
    wanted = {row: (values[column], values[0]) for row, values in rows().items() if values[column] != values[0]}
    assert shown.keys() == wanted.keys()
    for row, values in wanted.items():
        assert shown[row] == tuple(list(value) if isinstance(value, tuple) else value for value in values), row


def test_the_page_explains_where_recommended_leaves_the_paper(cli: Cli) -> None:
    """And what that costs is what docs/results/recordings.md has measured."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Where `recommended` leaves the paper")[1].split("\n## ")[0]
    results = (PAGE.parent / "results/recordings.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    told = {(cells[0], cells[1].strip("`")): cells for cells in lines if len(cells) == 6 and cells[1].startswith("`")}
    differing = json.loads(cli("config", "--diff", "paper", "--json").out)
    assert set(told) == {(line["stage"], line["field"]) for line in differing}
    for (stage, option), (*_, paper, _, _, measured) in told.items():
        value = "()" if paper == "none" else paper
        found = re.findall(rf"\| {stage} \| {re.escape(option)}={re.escape(value)} \| [a-z, ]+ \| ([^|]+) \|", results)
        assert ", ".join(found) == ("" if measured.startswith("no:") else measured)


def test_the_command_says_why_presets_differ(cli: Cli) -> None:
    shown = cli("config", "--preset", "authors", "--diff", "recommended", "--stage", "linear").out
    assert "eval.epochs" in shown and "cluster.k" not in shown and "Source: paper section 4" in shown
    changed = cli("config", "--diff", "recommended", "--stage", "linear", "--set", "eval.epochs=3", "--json")
    assert [(line["--set"], line["recommended"]) for line in json.loads(changed.out)] == [(3, 50)]
    assert "cluster.k" in cli("config").out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--method", "decar-v1", "--preset", "paper"],
            "--preset paper: method decar-v1 does not have it; it has recommended, decar-v1; leave --preset out",
        ),
        (
            ["--method", "decar-v2", "--preset", "decar-v1"],
            "--preset decar-v1: method decar-v2 does not have it; it has",
        ),
        (["--method", "decar-v1", "--stage", "linear"], "--stage linear: a method is of pre-training only"),
    ],
)
def test_a_method_without_such_values_says_so(cli: Cli, flags: list[str], says: str) -> None:
    done = cli("config", *flags)
    assert done.code == 1 and says in done.error


def test_a_method_brings_its_values(cli: Cli, tmp_path: Path) -> None:
    shown = json.loads(cli("config", "--method", "decar-v1", "--set", "optim.lr=0.1", "--json").out)
    wanted = {"method.name": "decar-v1", "cluster.algo": "pic", "optim.lr": 0.1, "optim.weight_decay": 1e-5}
    assert wanted.items() <= shown.items()
    byol = json.loads(cli("config", "--method", "byol", "--json").out)
    assert "method.ema" in byol and not any(name.startswith(("cluster.", "bank.", "method.queue")) for name in byol)
    beside = json.loads(cli("config", "--method", "byol", "--diff", "recommended", "--json").out)
    found = {line["field"]: (line["byol recommended"], line["decar-v2 recommended"]) for line in beside}
    assert (
        found["optim.lr"] == (3e-4, 1.0) and found["method.name"] == ("byol", "decar-v2") and "cluster.k" not in found
    )
    assert "no field differs" in cli("config", "--diff", "recommended").out
    assert flatten(preset("recommended", "pretrain", "decar-v1")) == flatten(preset("decar-v1", "pretrain"))
    done = cli("train", "pretrain", tmp_path, "--out", tmp_path / "run", "--set", "method.name=decar-v1")
    assert done.code == 1 and "a method has settings of its own; use --method decar-v1" in done.error
    wrong = cli("train", "pretrain", tmp_path, "--out", tmp_path / "run", "--method", "decar")
    assert wrong.code == 2 and "decar-v2" in wrong.err
