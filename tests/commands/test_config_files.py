"""`--config FILE`: what `config --yaml` prints, or the config.json of a run, is what a command then takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from outcomes import Cli, refused

from unfused_fast.commands.flags import PretrainFlags
from unfused_fast.config import Stage, flatten, preset


@pytest.mark.parametrize(
    "flags",
    [
        ("--stage", "pretrain"),
        ("--method", "slicer"),
        ("--stage", "distill", "--preset", "authors"),
        ("--stage", "linear", "--preset", "paper", "--set", "eval.lr=0.03"),
    ],
)
def test_what_is_printed_is_read_back(cli: Cli, tmp_path: Path, flags: tuple[str, ...]) -> None:
    printed, file = cli("config", *flags, "--yaml"), tmp_path / "run.yaml"
    assert printed.code == 0, printed.err
    file.write_text(printed.out)
    wanted, found = (json.loads(cli("config", *given, "--json").out) for given in (flags, ("--config", file)))
    assert {name: found[name] for name in wanted} == wanted
    nested, stage = yaml.safe_load(printed.out), flags[1] if flags[0] == "--stage" else "pretrain"
    assert nested["stage"] == stage and nested["optim"]["lr"] == wanted["optim.lr"]


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {epochs: 3, seed: 5}\noptim.lr: 1e-2\nmethod: {name: byol, ema: 0.9}\nmodel: {dim: 512}\n")
    flags = PretrainFlags(config_file=file, settings=["optim.lr=0.02", "model.channels=8"])
    config = flags.config("pretrain", epochs=4)
    assert (config.train.epochs, config.train.seed, config.optim.lr, config.model.channels) == (4, 5, 0.02, 8)
    assert (config.method.name, config.method.ema, config.model.dim) == ("byol", 0.9, 512)
    same = dict.fromkeys(("train.epochs", "train.seed", "optim.lr", "model.channels", "model.dim", "method.ema"))
    method = flatten(preset("recommended", "pretrain", "byol"))
    assert {name: value for name, value in flatten(config).items() if name not in same} == {
        name: value for name, value in method.items() if name not in same
    }
    assert PretrainFlags(config_file=file, seed=0).config("pretrain").train.seed == 0, "a flag that is its default"
    assert sorted(flags.named("distill")) == sorted(
        ["optim.lr", "model.channels", "train.epochs", "train.seed", "optim.lr", "model.dim", "model.channels"]
    )


def test_a_file_of_one_stage_is_for_that_stage_of_several(tmp_path: Path) -> None:
    file, stages = tmp_path / "run.yaml", tuple[Stage, ...](("pretrain", "distill", "linear"))
    file.write_text("stage: distill\noptim: {lr: 0.5}\n")
    rates = [PretrainFlags(config_file=file).config(stage, several=True).optim.lr for stage in stages]
    assert rates == [preset("recommended", "pretrain").optim.lr, 0.5, preset("recommended", "linear").optim.lr]
    file.write_text("cluster: {iterations: 7}\n")  # of DECAR
    configs = [PretrainFlags(config_file=file, method="byol").config(stage, several=True) for stage in stages]
    assert [config.cluster.iterations for config in configs] == [preset("paper", "linear").cluster.iterations, 7, 7]


def test_a_run_is_repeated_by_its_own_config(cli: Cli, pretrained: Path, tones: Path, tmp_path: Path) -> None:
    done = cli("train", "pretrain", tones, "--config", pretrained / "config.json", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    before, after = (json.loads((run / "config.json").read_text()) for run in (pretrained, tmp_path / "run"))
    assert before["config"] == after["config"]


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("train: [", (), ["line 1", "not readable as YAML", "config --yaml"]),
        ("- 1", (), ["no settings in it"]),
        ("", (), ["no settings in it"]),
        ("clusters: {k: 3}", (), ["clusters.k: neither a field nor a section", "cluster.k"]),
        ("cluster: 3", (), ["cluster: that is a section"]),
        ("cluster: {k: 3}\ncluster.k: 4", (), ["cluster.k is given twice"]),
        ("optim: {lr: -1}", (), ["optim.lr = -1: want a number, greater than 0"]),
        ("optim: {lr: }", (), ["optim.lr = None: want a number"]),
        ("stage: two\noptim: {lr: 1}", (), ["a stage is pretrain"]),
        ("stage: distill\noptim: {lr: 1}", (), ["settings of stage distill, but this is stage pretrain"]),
        ("method: {name: byol}", ("--method", "moco"), ["settings of method byol, but this is moco"]),
        ("method: {name: byo}", (), ["method.name = byo: want one of", "did you mean byol"]),
        ("method: {name: all}", (), ["method.name = all: want one of"]),
        ("model: &again {dim: *again}", (), ["model.dim.dim: neither a field nor a section"]),
        ("model: {dim: true}", (), ["model.dim = True: want a whole number"]),
        ("pseudo: {feature: 1}", (), ["pseudo.feature = 1: want"]),
        ("cluster: {empty: split}", ("--method", "byol"), ["byol does not read it"]),
    ],
)
def test_a_wrong_file_says_what_is_wrong(
    cli: Cli, tmp_path: Path, text: str, flags: tuple[str, ...], says: list[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    given = ("train", "pretrain", tmp_path / "set", "--out", tmp_path / "run", "--config", file, *flags)
    refused(cli(*given), file, *says)
    assert not (tmp_path / "run").exists()


def test_a_network_of_a_file_that_the_encoder_does_not_have_is_refused(
    cli: Cli, pretrained: Path, tones: Path, tmp_path: Path
) -> None:
    """But not the values that a whole file merely repeats of the preset."""
    file, linear = tmp_path / "run.yaml", ("train", "linear", tones, "--encoder", pretrained, "--set", "eval.epochs=1")
    file.write_text("model: {channels: 7}\n")
    refused(cli(*linear, "--out", tmp_path / "a", "--config", file), "model.channels", "has its own network")
    file.write_text(cli("config", "--stage", "linear", "--yaml").out)
    done = cli(*linear, "--out", tmp_path / "b", "--config", file)
    assert done.code == 0, done.err


def test_printing_a_file_excludes_other_ways_to_print(cli: Cli) -> None:
    refused(cli("config", "--yaml", "--diff", "paper"), "leave --diff out")
    refused(cli("config", "--yaml", "--json"), "leave --json out")


def test_what_one_method_reads_is_left_out_of_the_other_stages() -> None:
    """method.ema is read by byol, and by decar-v2 beside another setting only."""
    flags = PretrainFlags(method="byol", settings=["method.ema=0.9"])
    stages: tuple[Stage, ...] = ("pretrain", "distill", "linear")
    assert [flags.config(stage, several=True).method.ema for stage in stages] == [0.9, 0.99, 0.99]
