"""`ablate`: the numbers of the single commands, cells that fail, what is shared, what goes on after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import Cli, PackRows
from stopping import signalled_after

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import Stage, preset, with_values
from unfused_fast.errors import UserError
from unfused_fast.evaluation.ablation import ablate, cells_of
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training.options import Options

FEW = ["--set", "eval.epochs=5", "--set", "pseudo.n_init=1"]


def configs() -> dict[Stage, Config]:
    return {"linear": Config(), **{stage: preset("recommended", stage) for stage in ("pretrain", "distill")}}


def test_a_grid_has_every_combination_and_a_value_goes_to_the_stages_that_read_it() -> None:
    cells = cells_of(configs(), "all", {"cluster.k": ["8", "16"], "distill.beta": ["0", "0.003", "0.0"]}, False)
    assert [cell.name for cell in cells] == [
        f"cluster.k={k} distill.beta={beta}" for k in (8, 16) for beta in (0.0, 0.003)
    ]
    assert [cell.configs["pretrain"].cluster.k for cell in cells] == [8, 8, 16, 16]
    assert [cell.configs["distill"].distill.beta for cell in cells] == [0.0, 0.003] * 2
    assert {cell.configs["distill"].cluster.k for cell in cells} == {configs()["distill"].cluster.k}
    (wide,) = cells_of(configs(), "distill", {"model.channels": ["8"]}, False)
    assert (wide.configs["pretrain"].model.channels, wide.configs["distill"].model.channels) == (64, 8)


def test_one_at_a_time_has_the_base_first_and_no_value_twice() -> None:
    cells = cells_of(configs(), "all", {"eval.pool": ["maxmean", "mean"], "eval.lr_grid": ["0.1,0.3", "()"]}, True)
    values = [cell.values for cell in cells]
    assert values == [{}, {"eval.pool": "mean"}, {"eval.lr_grid": (0.1, 0.3)}, {"eval.lr_grid": ()}]
    assert cells[0].configs == configs() and cells[2].configs["linear"].eval.lr_grid == (0.1, 0.3)


def test_what_is_refused_before_anything_runs(
    cli: Cli, tones: Path, unlabelled: Path, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    def error(*arguments: object) -> str:
        done = cli(*arguments, "--out", tmp_path / "out", "--device", "cpu")
        assert done.code == 1 and not (tmp_path / "out").exists()
        return str(done.error)

    for setting in ("clusters.k=4", "cluster.kk=4", "cluster.k=many", "cluster.algo=pic"):
        varied, plain = error("ablate", tones, "--vary", setting), error("train", "pretrain", tones, "--set", setting)
        assert varied == plain.replace("--set", "--vary", 1)
    untested = pack_rows([row for row in tone_rows if row.split != "test"], tmp_path / "untested")
    # each of two groups holds all clips of a class, and some of the third
    of_class = {"middle": "A", "high": "B"}
    train = [row for row in tone_rows if row.split == "train"]
    needed = [replace(row, group=of_class.get(str(row.label), "AB"[number % 2])) for number, row in enumerate(train)]
    for words, shards, *varied in (
        ("does not read it; use --stage distill", tones, "distill.beta=0", "--stage", "pretrain"),
        ("want section.field=value,value", tones, "cluster.k"),
        ("a value is empty", tones, "cluster.k=4,,8"),
        ("given twice", tones, "cluster.k=4", "--vary", "cluster.k=8"),
        ("use --seeds", tones, "train.seed=0,1"),
        ("to compare several: unfused-fast compare", tones, "method.name=moco,byol"),
        ("without a label", unlabelled, "cluster.k=4"),
        ("no test split; use valid", untested, "eval.select=valid,best_test"),
        (
            "needed: no group of its train clips can be held out",
            pack_rows(needed, tmp_path / "needed"),
            "cluster.k=2,4",
        ),
    ):
        assert words in error("ablate", shards, "--vary", *varied)
    (tmp_path / "photos").mkdir()
    done = cli("ablate", tones, "--vary", "cluster.k=4", "--out", tmp_path, "--device", "cpu")
    assert done.code == 1 and "which is not part of an ablation" in done.error


def test_the_table_is_that_of_the_single_commands_and_a_cell_that_diverges_is_a_line(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out, flags = tmp_path / "out", ["--epochs", 1, *tiny, *FEW]
    varied = ["--vary", "cluster.k=4,2", "--vary", "optim.lr=1e30", "--one-at-a-time", "--stage", "pretrain"]
    done = cli("ablate", tones, "--out", out, *varied, "--seeds", 2, *flags, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary == json.loads((out / "ablation.json").read_text())
    base, two, diverged = summary["rows"]
    assert [row["settings"] for row in summary["rows"]] == ["base", "cluster.k=2", "optim.lr=1e+30"]
    run, scored, seed = tmp_path / "run", tmp_path / "linear", 1
    trained = cli("train", "pretrain", tones, "--out", run, "--seed", seed, *flags, "--set", "cluster.k=2")
    assert trained.code == 0, trained.err
    scores = cli(
        "train",
        "linear",
        tones,
        "--encoder",
        run,
        "--out",
        scored,
        "--seed",
        seed,
        *FEW[:2],
        "--device",
        "cpu",
        "--json",
    )
    tests = two["test"]["values"]
    assert tests[seed] == json.loads(scores.out)["test"] and two["seeds"] == [0, 1] and two["state"] == "done"
    assert two["test"]["mean"] == pytest.approx(np.mean(tests))
    assert two["test"]["standard_error"] == pytest.approx(np.std(tests, ddof=1) / 2**0.5)
    assert two["difference"]["mean"] == pytest.approx(two["test"]["mean"] - base["test"]["mean"])
    # three convolutions of 3 x 3 with 4 channels and BatchNorm, two layers of 32 from 4 channels x 8 bins
    assert base["parameters"] == 9 * 4 + 4 + 2 * (9 * 4 * 4 + 4) + 3 * 2 * 4 + 32 * 32 + 32 + 32 * 32 + 32
    assert diverged["state"] == "failed" and diverged["seeds"] == [] and diverged["test"]["mean"] is None
    assert [one["seed"] for one in diverged["failed"]] == [0, 1]
    assert "learning rate is too high" in diverged["failed"][0]["reason"]
    markdown = (out / "ablation.md").read_text()
    assert f"seeds 0, 1: {diverged['failed'][0]['reason'].split(';')[0]} |" in markdown
    assert f"| {100 * two['test']['mean']:.1f} ± " in markdown
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_what_diverged_in_a_pool_is_not_tried_again_by_an_ablation_that_shares_it(tones: Path, tmp_path: Path) -> None:
    shards, options = open_shards(tones), Options(torch.device("cpu"))
    tiny = {"model.channels": 4, "model.dim": 32, "cluster.k": 4, "train.epochs": 1, "optim.lr": 1e30}
    diverging = {stage: with_values(config, tiny) for stage, config in configs().items()}
    pool = RunPool(tmp_path / "pool", options)
    with pytest.raises(UserError, match="learning rate is too high") as first:
        pool.pretrain(diverging["pretrain"], shards)
    shutil.rmtree(tmp_path / "pool")
    (cell,) = cells_of(diverging, "pretrain", {"cluster.k": ["4"]}, False)
    summary = ablate([cell], "pretrain", shards, shards, tmp_path / "out", 1, pool)
    assert summary["rows"][0]["failed"] == [{"seed": 0, "reason": str(first.value)}]
    assert not [*tmp_path.glob("pool/*/")] and not (tmp_path / "out/runs").exists()


def test_a_stopped_command_goes_on_and_stage_1_is_shared(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Stopped in the second run of stage 2, after three steps of each run before it."""
    arguments = [tones, "--vary", "distill.alpha=0.7,1", "--vary", "distill.beta=0", "--epochs", 1, *tiny, *FEW]
    whole = cli("ablate", *arguments, "--out", tmp_path / "whole", "--json")
    assert whole.code == 0, whole.err
    runs = sorted(path.name.split("-")[0] for path in (tmp_path / "whole/runs").glob("*/"))
    assert runs == ["distill", "distill", "linear", "linear", "pretrain"]
    out = tmp_path / "out"
    with signalled_after(7):
        assert cli("ablate", *arguments, "--out", out).code == 130
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert len(before) == 3
    (out / "ablation.json.new").write_text("{")  # what a kill may leave too
    done = cli("ablate", *arguments, "--out", out, "--json")
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    resumed, straight = json.loads(done.out)["rows"], json.loads(whole.out)["rows"]
    names = [f"distill.alpha={alpha} distill.beta=0.0" for alpha in (0.7, 1.0)]
    assert [row["settings"] for row in resumed] == names
    assert [(row["valid"], row["test"]) for row in resumed] == [(row["valid"], row["test"]) for row in straight]
    # another value adds to what is there
    more = cli("ablate", *arguments[:2], "distill.alpha=1,0.5", *arguments[3:], "--out", out, "--json")
    assert more.code == 0 and len([*out.glob("runs/distill-*/")]) == 3
    assert json.loads(more.out)["rows"][0]["test"] == straight[1]["test"]
    # and the table says what it shows no longer
    (gone,) = json.loads(more.out)["not_shown"]
    assert gone.startswith(f"{names[0]}, seed 0 (linear-")
    assert f"Not shown: 1 more result in {out}, such as {gone}; to see" in (out / "ablation.md").read_text()
    assert json.loads(done.out)["not_shown"] == []
