"""How fast the parts of an epoch run: from rows that `unfused-fast bench` measured, or, said plainly, from data sheets.

N clips, D size of a projection, K clusters.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unfused_fast.commands.benchmarks import PARTS, VIEWS, Bench
from unfused_fast.commands.plan_bytes import StepCost
from unfused_fast.commands.synthetic import synthetic_set
from unfused_fast.config import Config, Store, with_values
from unfused_fast.errors import UserError
from unfused_fast.json_files import read_json
from unfused_fast.training import Options, quietly

Sheet = Literal["h100", "h200", "a100"]
PEAK_SHARE = 0.2
"""Share of a data sheet's peak that is assumed. Ours: what the code aims at, an epoch within five times of the floor;
nothing of ours was measured on these devices yet.
"""
NEEDED = ("loader", "views", "step", "kmeans", "bank")
"""Parts of `bench` that a plan is made from."""
QUICK_BATCHES = 4
"""Batches of the set that is measured on here."""
FEW_CLIPS = 2000
"""Clips of a set of which a clustering takes as long as one of hardly any."""


@dataclass(frozen=True)
class DataSheet:
    """What a maker says of a device; peaks that no program reaches."""

    name: str
    matmul_tflops: float
    """Dense bf16 products, in 10^12 operations a second."""
    memory_bytes_per_second: float
    memory_bytes: float
    host_bytes_per_second: float
    """From the host's memory, one direction of PCIe."""


SHEETS: Mapping[Sheet, DataSheet] = {
    "h100": DataSheet("NVIDIA H100 SXM 80 GB", 989, 3.35e12, 80e9, 64e9),
    "h200": DataSheet("NVIDIA H200 SXM 141 GB", 989, 4.8e12, 141e9, 64e9),
    "a100": DataSheet("NVIDIA A100 SXM 80 GB", 312, 2.039e12, 80e9, 32e9),
}
"""Source: NVIDIA's data sheets of these products; of the peaks given with sparsity, half."""


@dataclass(frozen=True)
class Rates:
    """What an epoch's time is computed from; None where it is not known."""

    basis: str
    """Where the rates come from, in a sentence."""
    step: float
    """Clips a second: both forward passes, backward pass, update."""
    views: float
    """Clips a second."""
    loader: Mapping[Store, float]
    """Clips a second from where log-mels lie."""
    kmeans: float
    """Operations a second of 2 N D K an iteration."""
    disk: float | None
    """Bytes a second that reach the disk."""
    first_pass: float | None = None
    """Seconds of audio a second, of the one pass over whole clips that makes the log-mels."""
    clustering: float = 0.0
    """Seconds of a clustering beside its products, whatever the number of clips."""
    peak_share: float | None = None
    """Share of a data sheet's peaks that all of these are; None where they were measured."""


def sheet_rates(sheet: DataSheet, config: Config, cost: StepCost, share: float, given_tflops: float | None) -> Rates:
    """Rates at a share of the peaks: a step takes its products, or its traffic if that takes longer.

    Ours: what is kept for the backward pass is written, read again, and written once more by the view without gradient,
    in bf16; k-means is three TF32 products, at half the bf16 rate each.
    """
    operations = share * 1e12 * (given_tflops or sheet.matmul_tflops)
    traffic = share * sheet.memory_bytes_per_second
    values = config.frontend.n_mels * config.crop_frames
    crops = 1 if config.views.same_crop else VIEWS
    peak = (
        f"{given_tflops:g} TFLOP/s as given by --matmul-tflops"
        if given_tflops
        else f"{sheet.matmul_tflops:g} TFLOP/s dense bf16"
    )
    return Rates(
        basis=f"data-sheet, not measured: {sheet.name}, {peak}, {sheet.memory_bytes_per_second / 1e12:g} TB/s; "
        f"{100 * share:g} % of both is assumed",
        step=1 / max(cost.flops / operations, 3 * cost.kept_bytes / 2 / traffic),
        views=traffic / (VIEWS * (4 + 4 + 2) * values),
        loader={
            "resident": traffic / (VIEWS * (2 + 2 + 2 + 4) * values),
            "pinned": share * sheet.host_bytes_per_second / (2 * crops * values),
        },
        kmeans=operations / 6,
        disk=None,
        peak_share=share,
    )


def measured_here(config: Config, options: Options, seconds: float, batch_size: int) -> Rates:
    """A quick `bench` of the parts on this machine, with these settings."""
    with tempfile.TemporaryDirectory(prefix="unfused-plan-") as name, quietly():
        batch = min(batch_size, 64 if options.device.type == "cpu" else 512)
        shards = synthetic_set(Path(name), QUICK_BATCHES * max(batch, 32), seconds)
        bench = Bench(shards, with_values(config, {"train.batch_size": batch}), options, quick=True)
        rows = [row.as_json() for part in (*NEEDED, "epoch") for row in PARTS[part](bench)]
    return rates_of(rows, config, None, f"measured here just now, on {options.device}")


def read_rates(path: Path, config: Config, cost: StepCost) -> Rates:
    """Rates from a file of `unfused-fast bench all --json`. Raises UserError: not such a file, or parts are missing."""
    how = "make it with: unfused-fast bench all --json > FILE"
    try:
        rows = read_json(path)["rows"]
        about = {str(row["device"]) for row in rows}
        dates = {str(row["date"]) for row in rows}
        return rates_of(rows, config, cost, f"measured, by {path.name}: {', '.join(sorted(about | dates))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no rows of a bench in it ({type(error).__name__}: {error}); {how}") from error


def rates_of(rows: Sequence[Mapping[str, Any]], config: Config, cost: StepCost | None, basis: str) -> Rates:
    """Rates from rows of a bench: medians, and what their floors were computed from; of whole epochs, where these were
    measured, since a step takes longer among all that an epoch does than again and again.

    With `cost`, a step that was measured with another network is scaled by its operations. Raises UserError: a part is
    missing.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    if missing := [name for name in NEEDED if name not in parts]:
        raise UserError(
            f"rates: no rows of {', '.join(missing)} ({basis}); measure all parts with: unfused-fast bench all --json"
        )
    step, kmeans, bank = parts["step"][0], parts["kmeans"][0], parts["bank"][0]
    n, d, k = _numbers(r"iteration, ([\d,]+) x (\d+), K (\d+)", kmeans["what"])
    _, width = _numbers(r"generation of ([\d,]+) x (\d+)", bank["what"])
    first_pass = [row for row in parts["loader"] if str(row["what"]).startswith("first pass")]
    row_bytes = width * (2 if "bf16" in bank["what"] else 4) + 8
    loaders = {row["what"].split(",")[0]: _rate(row) for row in parts["loader"]}
    rates = Rates(
        basis=basis,
        step=_rate(step),
        views=_rate(parts["views"][0]),
        loader={store: loaders[store] for store in ("stream", "resident", "pinned", "mmap") if store in loaders},
        kmeans=2 * n * d * k / (_rate(kmeans) / 1e3),
        disk=_positive(bank["floor"]) * row_bytes,
        first_pass=_rate(first_pass[0]) * _seconds(first_pass[0]["what"]) if first_pass else None,
    )
    rates = _as_in_epochs(rates, parts.get("epoch", []))
    counted = re.match(r"([\d.]+) GFLOP", str(step["floor_is"]))
    if cost is None or counted is None or float(counted[1]) == 0:
        return rates
    ratio = float(counted[1]) * 1e9 / cost.flops
    if abs(ratio - 1) < 0.01:
        return rates
    return replace(
        rates,
        step=rates.step * ratio,
        basis=f"{basis}; the step scaled from {counted[1]} to {cost.flops / 1e9:.2f} GFLOP a clip",
    )


def _as_in_epochs(rates: Rates, rows: Sequence[Mapping[str, Any]]) -> Rates:
    """The rates with step, views and clustering as epochs of `train pretrain` had them, in which training filled the
    bank; all that has no name there is the step's.
    """
    shares = {
        str(row["what"]).removeprefix("share of "): _positive(row["p50"] + 1e-9) / 100
        for row in rows
        if row["unit"] == "%"
    }
    if shares.get("forward bank view", 0.0) < 0.01:
        return rates
    (clips_per_second,) = (_rate(row) for row in rows if row["unit"] == "clips/s")
    ((epochs_per_second, clips),) = (
        (_rate(row), _numbers(r"train pretrain, ([\d,]+) clips", row["what"])[0])
        for row in rows
        if row["unit"] == "epochs/s"
    )
    others = sum(shares.get(name, 0.0) for name in ("augment", "load", "clustering", "save", "bank pass"))
    return replace(
        rates,
        step=clips_per_second / _positive(1 - others),
        views=clips_per_second / shares["augment"],
        clustering=shares.get("clustering", 0.0) / epochs_per_second if clips <= FEW_CLIPS else 0.0,
    )


def _rate(row: Mapping[str, Any]) -> float:
    return _positive(row["p50"])


def _seconds(text: str) -> float:
    found = re.search(r"clips of ([\d.]{1,9}) s$", text)
    return _positive(float(found[1]) if found else None)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{str(value)[:40]} is no rate")
    return float(value)


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{text[:60]!r} does not say what was measured")
    return [int(number.replace(",", "")) for number in found.groups()]
