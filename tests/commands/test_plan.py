"""`unfused-fast plan`: times worked out by hand from given rates, what does not fit, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.config.fields import Config
from unfused_fast.models.audiontt import PretrainNetwork

Cli = Callable[..., Any]
GIB = 2**30


def row(part: str, what: str, unit: str, p50: float, floor: float | None = None, floor_is: str = "") -> dict[str, Any]:
    about = {"device": "a machine", "date": "2026-01-02"}
    return {"part": part, "what": what, "unit": unit, "p50": p50, "floor": floor, "floor_is": floor_is, **about}


def rows() -> list[dict[str, Any]]:
    """A machine: 500 clips/s a step, 2,000 views, 1,000 streamed and 10,000 resident, 600 of 2.5 s in the first pass;
    k-means 1 TFLOP/s; 1 GB/s.
    """
    return [
        row("loader", "stream, two views", "clips/s", 1000, 2000, "decoding alone, all cores"),
        row("loader", "first pass over the audio, clips of 2.50 s", "clips/s", 600, 2000, "decoding alone, all cores"),
        row("loader", "resident, two views", "clips/s", 10_000),
        row("views", "mixup + random resize crop, two views", "clips/s", 2000),
        row("step", "audiontt, fp32, batch 64", "clips/s", 500, 900, "1.13 GFLOP a clip at the matmul rate"),
        row("kmeans", "iteration, 100,000 x 512, K 512, torch", "ms", 1e3 * 2 * 100_000 * 512 * 512 / 1e12),
        row("bank", "generation of 20,000 x 512 on disk, fp32", "rows/s", 1e5, 1e9 / (512 * 4 + 8), "raw write"),
    ]


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rows": rows(), "limit": None}))
    return path


def planned(cli: Cli, *arguments: object) -> dict[str, Any]:
    done = cli("plan", "--json", *arguments)
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_times_by_hand(cli: Cli, rates: Path) -> None:
    """100,000 clips at the paper's sizes, 10 k-means iterations and a last assignment, one checkpoint an epoch."""
    made = planned(cli, "--clips", 100_000, "--rates", rates, "--device", "cpu", "--epochs", 7, "--host-gb", 100)
    assert made["store"] == "resident" and not made["unknown"] and made["peak_share"] is None
    wanted = {"step": 200, "views": 50, "loading": 10, "k-means": 11 * 2 * 100_000 * 512 * 512 / 1e12}
    assert made["epoch"] == pytest.approx({**wanted, "saving": 0.0}, rel=0.01)
    assert made["epoch_seconds"] == pytest.approx(sum(wanted.values()), rel=0.01)
    by_length = 100_000 * 10 / (600 * 2.5)
    once = {"first pass of the bank": 200 / 4 + 50 / 2, "log-mels, once a set": by_length}
    assert made["once"] == pytest.approx(once, rel=0.01)
    assert made["hours"] == pytest.approx((7 * made["epoch_seconds"] + 75 + by_length) / 3600, rel=0.001)


def test_each_head_is_clustered_scored_and_remembered(cli: Cli, rates: Path) -> None:
    """One after the other, so that their times add up and the memory of k-means is that of the largest."""

    def of(k: str) -> dict[str, Any]:
        return planned(
            cli, "--clips", 100_000, "--rates", rates, "--device", "cpu", "--host-gb", 100, "--set", f"cluster.k={k}"
        )

    three, one, largest = of("512,512,1024"), of("512"), of("1024")
    assert three["heads"] == [512, 512, 1024] and one["heads"] == [512]
    assert three["epoch"]["k-means"] == pytest.approx(11 * 2 * 100_000 * 512 * (512 + 512 + 1024) / 1e12)
    assert three["flops_per_clip"] - one["flops_per_clip"] == 2 * 2 * 512 * (512 + 1024)  # scores, and their gradient
    assert three["device"]["memory bank"] == 100_000 * (512 * 4 + 4 + 3 * 2 * 8)
    assert three["device"]["k-means, about"] == largest["device"]["k-means, about"] > one["device"]["k-means, about"]
    assert three["disk"]["one checkpoint"] > one["disk"]["one checkpoint"] + 2 * 100_000 * 8 + (512 + 1024) * 512 * 4
    assert "K 512, 1024" in cli("plan", "--clips", 5000, "--device", "a100", "--set", "cluster.k=512,1024").out


def test_epochs_that_were_measured_say_what_a_step_takes_among_all_else(cli: Cli, tmp_path: Path) -> None:
    """Epochs of 800 clips and 2 s: a step is what is neither views, batches nor clustering, which took 0.1 s."""
    shares = {"forward bank view": 20.0, "backward": 50.0, "augment": 10.0, "load": 5.0, "clustering": 5.0}

    def of(clips: int, **changed: float) -> dict[str, Any]:
        epochs = [row("epoch", f"train pretrain, {clips:,} clips", "epochs/s", 400 / clips)]
        epochs += [row("epoch", "the same", "clips/s", 400)]
        epochs += [row("epoch", f"share of {name}", "%", share) for name, share in {**shares, **changed}.items()]
        (tmp_path / "rates.json").write_text(json.dumps({"rows": rows() + epochs}))
        flags = ["--device", "cpu", "--host-gb", 100]
        return dict(planned(cli, "--clips", 100_000, "--rates", tmp_path / "rates.json", *flags)["epoch"])

    products = 11 * 2 * 100_000 * 512 * 512 / 1e12
    wanted = {"step": 100_000 / 400 * 0.8, "views": 100_000 / 400 * 0.1, "loading": 10, "saving": 0.0}
    assert of(800) == pytest.approx({**wanted, "k-means": products + 0.1}, rel=0.01)
    assert of(80_000)["k-means"] == pytest.approx(products), "of many clips, products are most of it"
    apart = of(800, **{"forward bank view": 0.0})
    assert apart["views"] == pytest.approx(50), "a pass of its own filled the bank: the parts as they are alone"


def test_a_pass_that_fills_the_bank_is_part_of_each_epoch_that_clusters(cli: Cli, rates: Path) -> None:
    """It takes over the step's forward pass without gradient; a view a pass, of which the bank's is not augmented."""

    def of(*more: object) -> dict[str, Any]:
        fixed = ["--clips", 100_000, "--rates", rates, "--device", "cpu", "--host-gb", 100, "--set", "bank.fill=pass"]
        return planned(cli, *fixed, *more)

    each, second = of(), of("--set", "cluster.every_epochs=2")
    wanted = {"step": 150, "bank pass": 50, "views": 25, "loading": 10, "k-means": 11 * 2 * 1e5 * 512 * 512 / 1e12}
    assert each["epoch"] == pytest.approx({**wanted, "saving": 0.0}, rel=0.01)
    halved = {**wanted, "bank pass": 25, "loading": 7.5, "k-means": wanted["k-means"] / 2}
    assert second["epoch"] == pytest.approx({**halved, "saving": 0.0}, rel=0.01)
    assert of("--set", "data.store=stream")["epoch"]["loading"] == pytest.approx(2 * 100), "decoded twice"
    assert set(each["once"]) == {"log-mels, once a set"}


def test_a_first_pass_that_was_not_measured_is_unknown(cli: Cli, rates: Path) -> None:
    rates.write_text(json.dumps({"rows": [line for line in rows() if not line["what"].startswith("first pass")]}))
    made = planned(cli, "--clips", 100_000, "--rates", rates, "--device", "cpu", "--host-gb", 100)
    assert "log-mels, once a set" not in made["once"] and any("making the log-mels" in part for part in made["unknown"])
    streamed = planned(cli, "--clips", 1000, "--rates", rates, "--device", "cpu", "--set", "data.store=stream")
    assert streamed["unknown"] == []


def test_a_save_that_takes_longer_than_an_epoch_is_waited_for(cli: Cli, rates: Path) -> None:
    slow = [{**line, "floor": line["floor"] / 1e4} if line["part"] == "bank" else line for line in rows()]
    rates.write_text(json.dumps({"rows": slow, "limit": None}))
    made = planned(cli, "--clips", 100_000, "--rates", rates, "--device", "cpu", "--host-gb", 100)
    written = made["disk"]["one checkpoint"] + made["disk"]["one generation of the bank"]
    training = sum(seconds for part, seconds in made["epoch"].items() if part != "saving")
    assert made["epoch"]["saving"] == pytest.approx(written / 1e5 - training, rel=0.01) and written / 1e5 > training


def test_bytes_by_hand(cli: Cli, rates: Path) -> None:
    made = planned(cli, "--clips", 1_000_000, "--rates", rates, "--device", "cpu", "--host-gb", 1000)
    assert made["device"]["log-mels"] == 1_000_000 * 1001 * 64 * 2
    assert made["device"]["memory bank"] == 1_000_000 * (512 * 4 + 4 + 8 + 8)
    assert made["disk"]["one generation of the bank"] == pytest.approx(1_000_000 * (512 * 4 + 8), rel=0.001)
    assert made["device_bytes"] == sum(made["device"].values())
    halved = planned(
        cli, "--clips", 1_000_000, "--rates", rates, "--device", "cpu", "--host-gb", 1000, "--set", "bank.dtype=bf16"
    )
    assert halved["device"]["memory bank"] == 1_000_000 * (512 * 2 + 4 + 8 + 8)


def test_a_step_of_another_network_is_scaled_by_its_operations(cli: Cli, rates: Path) -> None:
    one = planned(cli, "--clips", 1000, "--rates", rates, "--device", "cpu")
    other = planned(cli, "--clips", 1000, "--rates", rates, "--device", "cpu", "--set", "model.channels=16")
    ratio = other["flops_per_clip"] / one["flops_per_clip"]
    assert ratio < 0.6 and other["epoch"]["step"] / one["epoch"]["step"] == pytest.approx(ratio, rel=0.01)
    assert "scaled from 1.13" in other["basis"] and "scaled" not in one["basis"]


@pytest.mark.parametrize(
    ("more", "store"),
    [
        (["--host-gb", 10], "resident"),
        (["--device-gb", 1, "--host-gb", 100], "pinned"),
        (["--device-gb", 1, "--host-gb", 4], "mmap"),
        (["--set", "data.store=stream"], "stream"),
    ],
)
def test_the_mode_that_memory_allows(cli: Cli, more: list[object], store: str) -> None:
    made = planned(cli, "--clips", 50_000, "--device", "h100", *more)
    assert made["store"] == store and ("log-mels" in made["device"]) == (store == "resident")
    assert made["host"].get("log-mels, pinned") == (8 * GIB if store == "pinned" else None)  # 6.4 GB, rounded up
    assert (f"loading with --data {store}" in made["unknown"]) == (store in ("stream", "mmap"))
    assert ("if the disk has room for 6.41 GB" in made["why"]) == (store == "mmap"), "nobody has looked"


def test_what_does_not_fit_is_said(cli: Cli) -> None:
    done = cli("plan", "--clips", 100_000_000, "--device", "h100", "--host-gb", 64)
    assert done.code == 0, done.err
    assert "does not fit: " in done.out and "memory bank takes 206.80 GB; use --set bank.dtype=bf16" in done.out
    assert "in the host's memory" in done.out and "64.00 GB can be taken" in done.out


def test_several_devices_share_the_work_and_each_holds_the_bank(cli: Cli) -> None:
    command = ["--clips", 2_000_000, "--device", "h200", "--host-gb", 2000, "--set", "data.store=pinned"]
    one, eight = planned(cli, *command), planned(cli, *command, "--devices", 8)
    assert one["device"]["memory bank"] == eight["device"]["memory bank"] == 2_000_000 * 2068
    message = eight["device"]["gradients as one message"]
    assert message == 4 * sum(parameter.numel() for parameter in PretrainNetwork(Config()).parameters())
    kept = "kept for the backward pass, about"
    assert eight["device"][kept] * 8 == one["device"][kept]
    for name in ("clips table", "order of an epoch, about", "log-mels, pinned"):
        assert eight["host"][name] == 8 * one["host"][name], name
    assert eight["host"]["copy of the bank being saved"] == one["host"]["copy of the bank being saved"]
    for name in ("step", "views", "k-means"):
        assert eight["epoch"][name] == pytest.approx(one["epoch"][name] / 8)
    assert "what the devices tell each other" in eight["unknown"] and eight["disk"] == one["disk"]
    said = cli("plan", "--clips", 1000, "--device", "a100", "--devices", 2).out
    assert "2 devices of one machine" in said and "an epoch on 2 devices: at least" in said
    parts = planned(cli, *command, "--set", "train.accumulate=4")
    assert parts["device"][kept] * 4 == one["device"][kept]


def test_data_sheets_are_called_that(cli: Cli) -> None:
    made = planned(cli, "--clips", 2_000_000, "--device", "h100", "--peak-share", 0.5)
    assert "data-sheet, not measured" in made["basis"] and "50 % of both is assumed" in made["basis"]
    by_products = 2_000_000 * made["flops_per_clip"] / (0.5 * 989e12)
    assert made["epoch"]["step"] >= by_products and made["floor_seconds"] == pytest.approx(made["epoch_seconds"] / 2)
    slower = planned(cli, "--clips", 2_000_000, "--device", "h100", "--matmul-tflops", 1, "--peak-share", 0.5)
    assert "1 TFLOP/s as given" in slower["basis"]
    assert slower["epoch"]["step"] == pytest.approx(2_000_000 * made["flops_per_clip"] / 0.5e12)
    text = cli("plan", "--clips", 1000, "--device", "a100").out
    assert "the run: at least" in text and "these rates do not tell it: saving" in text
    assert "at the theoretical peak of the data sheet, unreachable in practice" in text and "312 TFLOP/s" in text


@pytest.mark.parametrize("preset", ["paper", "authors", "decar-v1"])
def test_every_preset_has_a_plan(cli: Cli, preset: str) -> None:
    made = planned(cli, "--clips", 5000, "--device", "a100", "--preset", preset)
    assert made["hours"] > 0 and ("clustering by pic" in made["unknown"]) == (preset == "decar-v1")
    assert ("bank pass" in made["epoch"]) == (preset == "decar-v1")


def test_flags_that_say_nothing_are_refused(cli: Cli, rates: Path) -> None:
    assert "this machine is measured" in cli("plan", "--clips", 100, "--matmul-tflops", 5).error
    assert "leave out" in cli("plan", "--clips", 100, "--device", "h100", "--rates", rates, "--peak-share", 0.3).error
    assert "cluster.k = 4000" in cli("plan", "--clips", 100, "--device", "h100", "--set", "cluster.k=4000").error


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: [],
        lambda found: found[1:3],
        lambda found: [{**item, "p50": None} for item in found],
        lambda found: [{**item, "p50": "fast"} for item in found],
        lambda found: [{**item, "p50": float("nan")} for item in found],
        lambda found: [{**item, "p50": 10**400} for item in found],
        lambda found: [{**item, "p50": True} for item in found],
        lambda found: [{**item, "what": 7} for item in found],
        lambda found: [{**item, "what": "x" * 10_000} for item in found],
        lambda found: [{**item, "floor": -1} for item in found],
        lambda found: [{**item, "what": item["what"].replace("2.50", "2.5.0")} for item in found],
        lambda found: [{**item, "what": item["what"].replace("2.50", "0")} for item in found],
        lambda found: [1, 2],
        lambda found: {"part": "step"},
        lambda found: None,
    ],
)
def test_rates_that_are_none(cli: Cli, tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    (tmp_path / "rates.json").write_text(json.dumps({"rows": spoil(rows())}))
    done = cli("plan", "--clips", 100, "--device", "cpu", "--rates", tmp_path / "rates.json")
    assert done.code == 1 and "bench all --json" in done.error and len(done.error) < 700


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"rows": 7}', "[" * 100_000, "\x00\xff"])
def test_files_that_hold_no_rates(cli: Cli, tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.json").write_bytes(text.encode("latin-1"))
    done = cli("plan", "--clips", 100, "--device", "cpu", "--rates", tmp_path / "rates.json")
    assert done.code == 1 and "no rows of a bench in it" in done.error
    assert "no rows" in cli("plan", "--clips", 100, "--rates", tmp_path / "gone.json").error


def test_this_machine_is_measured(cli: Cli, tiny: list[str]) -> None:
    made = planned(cli, "--clips", 1000, "--seconds", 1, *tiny)
    assert "measured here just now, on cpu" in made["basis"] and made["floor_seconds"] is None
    assert set(made["epoch"]) == {"step", "views", "loading", "k-means", "saving"}
    assert made["once"]["log-mels, once a set"] > 0
    assert all(seconds > 0 for part, seconds in made["epoch"].items() if part != "saving")  # which may hide all of it
