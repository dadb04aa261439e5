"""`unfused-fast plan`: times worked out by hand from given rates, what does not fit, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from outcomes import refused

from unfused_fast.commands.measure import rates as measure_rates
from unfused_fast.config.fields import Config
from unfused_fast.config.methods import MethodName
from unfused_fast.models.audiontt import PretrainNetwork

Cli = Callable[..., Any]


def row(part: str, what: str, unit: str, p50: float, floor: float | None = None, floor_is: str = "") -> dict[str, Any]:
    about = {"device": "a machine", "date": "2026-01-02"}
    return {"part": part, "what": what, "unit": unit, "p50": p50, "floor": floor, "floor_is": floor_is, **about}


def rows() -> list[dict[str, Any]]:
    """A machine: epochs of 80,000 clips at 400 clips/s, of which 5 % is loading; 1,000 clips/s streamed, 10,000
    resident, 600 of 2.5 s in the first pass.
    """
    return [
        row("loader", "stream, two views", "clips/s", 1000, 2000, "decoding alone, all cores"),
        row("loader", "first pass over the audio, clips of 2.50 s", "clips/s", 600, 2000, "decoding alone, all cores"),
        row("loader", "resident, 1 view", "clips/s", 10_000),
        row("step", "audiontt, fp32, batch 64", "clips/s", 500, 900, "0.85 GFLOP a clip at the matmul rate"),
        row("epoch", "train pretrain, 80,000 clips", "epochs/s", 400 / 80_000),
        row("epoch", "the same", "clips/s", 400),
        row("epoch", "share of load", "%", 5.0),
        row("epoch", "share of backward", "%", 95.0),
    ]


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rows": rows(), "limit": None}))
    return path


def planned(cli: Cli, *arguments: object) -> dict[str, Any]:
    done = cli("plan", "--json", "--clips", 100_000, *arguments)
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_times_by_hand(cli: Cli, rates: Path) -> None:
    made = planned(cli, "--rates", rates, "--device", "cpu", "--epochs", 7, "--host-memory", "100GB")
    assert made["store"] == "resident" and not made["unknown"] and made["basis"].startswith("measured, by rates.json")
    epoch, once = (
        {"training": 100_000 / 400 * 0.95, "loading": 10},
        {"log-mels, once a set": 100_000 * 10 / (600 * 2.5)},
    )
    once |= {"first pass of the bank": epoch["training"] / 3}
    assert made["epoch"] == pytest.approx(epoch, rel=0.01) and made["once"] == pytest.approx(once, rel=0.01)
    assert made["hours"] == pytest.approx((7 * sum(epoch.values()) + sum(once.values())) / 3600, rel=0.01)
    table = cli("plan", "--clips", 100_000, "--rates", rates, "--device", "cpu", "--host-memory", "100GB").out
    assert (
        "stage 1 by decar-v2, 100,000 clips of 10 s, 100 epochs, batch 512, K 512" in table
        and "the run: 7.08 hours" in table
    )


def test_measuring_is_announced_where_it_happens(cli: Cli, rates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, stopped = ["plan", "--clips", 1000, "--json"], KeyboardInterrupt()
    monkeypatch.setattr(measure_rates, "measured_here", lambda *_: (_ for _ in ()).throw(stopped))
    done = cli(*given, "--device", "cpu")
    assert done.code == 130 and done.err.splitlines() == [
        "plan: measuring this machine; to skip that, give --rates FILE or a GPU such as --device h100",
        "plan: stopped; nothing is kept",
    ]
    for computed in (["--device", "h100"], ["--device", "cpu", "--rates", rates]):
        done = cli(*given, *computed)
        assert done.code == 0 and "measuring" not in done.err


def test_each_head_is_remembered(cli: Cli) -> None:
    three, one, largest = (
        planned(cli, "--device", "h100", "--set", f"cluster.k={k}") for k in ("512,512,1024", "512", "1024")
    )
    assert three["heads"] == [512, 512, 1024] and one["heads"] == [512]
    assert three["flops_per_clip"] - one["flops_per_clip"] == 2 * 2 * 512 * (512 + 1024)  # scores, and their gradient
    assert three["device"]["memory bank"] == one["device"]["memory bank"] == 100_000 * (512 * 4 + 4)
    assert three["device"]["clusters of all clips"] == 100_000 * 3 * 2 * 8
    assert three["device"]["k-means, about"] == largest["device"]["k-means, about"] > one["device"]["k-means, about"]
    assert three["disk"]["one checkpoint"] - one["disk"]["one checkpoint"] == 2 * 100_000 * 8 + (512 + 1024) * 512 * 4


@pytest.mark.parametrize(
    ("more", "part", "seconds"),
    [(["--set", "data.store=stream"], "loading", 100), (["--devices", 8], "training", 250 * 0.95 / 8)],
)
def test_what_a_setting_changes(cli: Cli, rates: Path, more: list[object], part: str, seconds: float) -> None:
    made = planned(cli, "--rates", rates, "--device", "cpu", "--host-memory", "900GB", *more)
    assert made["epoch"][part] == pytest.approx(seconds, rel=0.01)
    assert ("communication of the devices" in made["unknown"]) == ("--devices" in more)


def test_rates_that_lack_the_first_pass(cli: Cli, rates: Path) -> None:
    rates.write_text(json.dumps({"rows": [line for line in rows() if not line["what"].startswith("first pass")]}))
    made = planned(cli, "--rates", rates, "--device", "cpu", "--host-memory", "100GB")
    assert "log-mels, once a set" not in made["once"] and made["unknown"] == ["making the log-mels, once a set"]


def test_another_network_is_scaled_by_its_operations(cli: Cli, rates: Path) -> None:
    one, other = (
        planned(cli, "--rates", rates, "--device", "cpu", *more) for more in ([], ["--set", "model.channels=16"])
    )
    ratio = other["flops_per_clip"] / one["flops_per_clip"]
    assert ratio < 0.6 and other["epoch"]["training"] / one["epoch"]["training"] == pytest.approx(ratio, rel=0.01)
    assert "scaled from 0.85" in other["basis"] and "scaled" not in one["basis"]


@pytest.mark.parametrize(
    ("more", "store"),
    [
        (["--host-memory", "10GB"], "resident"),
        (["--device-memory", "1GB", "--host-memory", "100GB"], "pinned"),
        (["--device-memory", "1GB", "--host-memory", "4GB"], "mmap"),
        (["--set", "data.store=stream"], "stream"),
    ],
)
def test_the_store_that_memory_allows(cli: Cli, more: list[object], store: str) -> None:
    made = planned(cli, "--clips", 50_000, "--device", "h100", *more)
    assert made["store"] == store and ("log-mels" in made["device"]) == (store == "resident")
    assert made["host"].get("log-mels") == (50_000 * 1001 * 64 * 2 if store == "pinned" else None)
    assert made["hours"] is None and "give --rates" in made["unknown"][0], "no GPU was measured"


@pytest.mark.parametrize("device_gb", [80, 1])
def test_the_hosts_memory_is_not_known(cli: Cli, device_gb: int) -> None:
    """Nothing is said of its free memory; which of the host's stores it is depends on that."""
    made = planned(cli, "--clips", 50_000, "--device", "h100", "--device-memory", f"{device_gb}GB")
    assert made["store"] == ("resident" if device_gb == 80 else "mmap")
    assert "in memory" not in made["why"] and ("give --host-memory" in made["why"]) == (device_gb == 1)


def test_what_does_not_fit(cli: Cli) -> None:
    done = cli("plan", "--clips", 100_000_000, "--device", "h100", "--host-memory", "64GB")
    assert done.code == 0 and "memory bank takes 205.20 GB; use --set bank.dtype=bf16, more --devices" in done.out
    assert "in the host's memory of 64.00 GB" in done.out


def test_each_device_holds_its_own_clips(cli: Cli) -> None:
    """AudioSet on 8 GPUs, and 50 times as many clips on 64 in 8 machines; the host is that of rank 0."""
    command = ["--clips", 2_000_000, "--device", "h200", "--host-memory", "2000GB", "--set", "data.store=pinned"]
    one, eight = planned(cli, *command), planned(cli, *command, "--devices", 8)
    assert one["device"]["memory bank"] == 8 * eight["device"]["memory bank"] == 2_000_000 * (2048 + 4)
    assert one["device"]["clusters of all clips"] == eight["device"]["clusters of all clips"] == 2_000_000 * 16
    assert one["device"]["mixup memory"] == 8 * eight["device"]["mixup memory"] == 2048 * 64 * 96 * 2
    few = planned(cli, "--clips", 100, "--device", "h200", "--set", "data.partitions=64")
    assert few["device"]["mixup memory"] == 64 * 64 * 96 * 2, "one clip of each partition"
    saved = "copy of the bank being saved"
    assert one["host"][saved] == eight["host"][saved] == 2**32 + 2**24, "4.1 GB and 16 MB, pinned in powers of two"
    assert one["host"]["log-mels"] == eight["host"]["log-mels"] == 2_000_000 * 1001 * 64 * 2
    command[-1] = "data.store=resident"
    resident = planned(cli, *command, "--devices", 8)
    assert resident["device"]["log-mels"] == 250_000 * 1001 * 64 * 2 and not resident["problems"]
    many = ["--devices", 64, "--machines", 8, "--set", "bank.dtype=bf16", "--set", "data.partitions=64"]
    large = planned(cli, *command[2:6], *many, "--clips", 100_000_000, "--set", "data.store=stream")
    assert large["device"]["memory bank"] == 1_562_500 * (1024 + 4) and large["disk"]["one generation of the bank"] == (
        100_000_000 * (1024 + 8)
    )
    assert large["host"]["clips table"] == 8 * 50 * one["host"]["clips table"]
    done = cli("plan", "--clips", 100, "--device", "h100", "--devices", 20, "--machines", 8)
    assert done.code == 1 and "want equally many devices in each machine; use --devices 16" in done.error


def test_several_devices_share_a_step(cli: Cli) -> None:
    command = ["--clips", 2_000_000, "--device", "h200", "--host-memory", "2000GB", "--set", "data.store=pinned"]
    one, eight = planned(cli, *command), planned(cli, *command, "--devices", 8)
    parameters = sum(parameter.numel() for parameter in PretrainNetwork(Config()).parameters())
    assert eight["device"]["gradients in buckets"] == 4 * parameters
    kept = "kept for the backward pass, about"
    assert eight["device"][kept] * 8 == one["device"][kept]
    for name in ("clips table", "order of an epoch, about"):
        assert eight["host"][name] == 8 * one["host"][name], name
    parts = planned(cli, *command, "--set", "train.accumulate=4")
    assert parts["device"][kept] * 4 == one["device"][kept]


@pytest.mark.parametrize("preset", ["paper", "authors", "decar-v1"])
def test_every_preset_has_a_plan(cli: Cli, rates: Path, preset: str) -> None:
    made = planned(cli, "--clips", 5000, "--rates", rates, "--device", "a100", "--preset", preset)
    assert made["hours"] > 0
    assert "cluster.k = 4000" in cli("plan", "--clips", 100, "--device", "h100", "--set", "cluster.k=4000").error


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_has_a_plan(cli: Cli, rates: Path, method: str) -> None:
    made = planned(cli, "--clips", 5000, "--rates", rates, "--device", "a100", "--method", method)
    clusters, table = method in ("decar-v1", "decar-v2"), dict(made["device"])
    assert made["hours"] > 0 and made["flops_per_clip"] > 1e8
    assert ("memory bank" in table) == ("first pass of the bank" in made["once"] or method == "decar-v1") == clusters
    queue = {"moco": 2500, "slicer": 2500, "delores-m": 2500, "swav": 2 * 2500}.get(method, 0)
    beside = table.get("queues, networks that follow", 0)
    follows = method in ("moco", "byol", "slicer", "delores-m")
    network = table["network, gradients, optimiser"] / 3  # beside it two moments of AdamW
    assert beside >= queue * 128 * 4 + follows * network / 8 and (beside > 0) == bool(queue or follows)


@pytest.mark.parametrize(
    ("method", "preset", "k", "queue"),
    [
        ("decar-v2", "paper", ("auto",), 65536),
        ("moco", "authors", (512,), "auto"),
        ("slicer", "recommended", (128,), "auto"),
    ],
)
def test_what_is_measured_here_fits_a_small_set(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, method: str, preset: str, k: tuple[Any, ...], queue: Any
) -> None:
    seen = list[Config]()
    monkeypatch.setattr(measure_rates, "synthetic_set", lambda _, clips, seconds: clips)
    monkeypatch.setattr(measure_rates, "Bench", lambda clips, config, *_, **__: seen.append(config))
    for part in ("loader", "step", "epoch"):
        monkeypatch.setattr(measure_rates, part, lambda bench: iter(()))
    monkeypatch.setattr(measure_rates, "rates_of", lambda *_: measure_rates.Rates("none", 1.0, 1.0, {}, None))
    planned(cli, "--device", "cpu", "--method", method, "--preset", preset)
    assert (seen[0].cluster.heads, seen[0].method.queue) == (k, queue)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((json.dumps({"rows": lines}), "bench all --json") for lines in ([], rows()[1:3], None)),
        *((json.dumps({"rows": [{**line, "p50": value} for line in rows()]}), "not a rate") for value in (-1, 1e400)),
        (json.dumps({"rows": [{**line, "floor_is": "x"} for line in rows()]}), "does not name what was measured"),
        ("\x00", "not the rows of a bench"),
        (None, "no.json: cannot be read (No such file or directory); measure all"),
    ],
)
def test_files_that_hold_no_rates(cli: Cli, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "no.json"
    if content is not None:
        path.write_text(content)
    done = cli("plan", "--clips", 100, "--device", "cpu", "--rates", path)
    assert done.code == 1 and said in done.error and "measure all parts with" in done.error and len(done.error) < 700


@pytest.mark.parametrize(
    ("text", "shown"), [("80GB", "80.00 GB"), ("1.5 TB", "1500.00 GB"), ("80GiB", "85.90 GB"), ("512 MiB", "0.54 GB")]
)
def test_sizes_have_units(cli: Cli, text: str, shown: str) -> None:
    command = ["--clips", 10**9, "--device", "h100", "--set", "data.store=resident", "--device-memory"]
    assert f"on a device of {shown}" in cli("plan", *command, text).out


@pytest.mark.parametrize("text", ["80", "80G", "GB", "-1GB", "80 gigabytes"])
def test_sizes_without_units_are_refused(cli: Cli, text: str) -> None:
    refused(cli("plan", "--clips", 1000, "--device", "h100", f"--host-memory={text}"), text, "such as 80GB or 74.5GiB")
