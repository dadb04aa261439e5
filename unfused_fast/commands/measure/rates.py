"""How fast the parts of an epoch run, from rows of `unfused-fast bench`."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfused_fast.commands.measure.parts import PARTS, Bench
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import Config, with_values
from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import read_json
from unfused_fast.training import Options, quietly, resolve_batch_size

QUICK_BATCHES = 4
"""Batches of the set that is measured on here."""
FEW_CLIPS = 2000
"""Clips of a set of which a clustering takes as long as one of hardly any."""
REMEASURE = "measure all parts with: unfused-fast bench all --json > FILE"


@dataclass(frozen=True)
class Rates:
    """What an epoch's time is computed from."""

    basis: str
    """Where the rates come from."""
    training: float
    """Clips a second through augmentation and steps, and the pass that fills the bank, where there is one."""
    gflop_per_clip: float
    """Of the network that was measured."""
    loader: Mapping[str, float]
    """Clips a second of each store."""
    kmeans: float
    """Operations a second, of 2 N D K an iteration."""
    clustering: float
    """Seconds of a clustering beside its products, whatever the number of clips."""
    disk: float
    """Bytes a second that reach the disk."""
    first_pass: float | None
    """Seconds of audio a second, of the pass that makes the log-mels; None: not measured."""


def measured_here(config: Config, options: Options, clips: int, seconds: float) -> Rates:
    """A quick `bench` of all parts on this machine, with these settings."""
    with tempfile.TemporaryDirectory(prefix="unfused-plan-") as name, quietly():
        batch = min(resolve_batch_size(config, clips), 64 if options.device.type == "cpu" else 512)
        shards = synthetic_set(Path(name), QUICK_BATCHES * max(batch, 32), seconds)
        bench = Bench(shards, with_values(config, {"train.batch_size": batch}), options, quick=True)
        rows = [row.as_json() for part in PARTS.values() for row in part(bench)]
    return rates_of(rows, f"measured here just now, on {options.device}")


def read_rates(path: Path) -> Rates:
    """Rates from a file of `unfused-fast bench all --json`. Raises UserError: not such a file, or parts are missing."""
    try:
        rows = read_json(path)["rows"]
        about = {str(row[key]) for row in rows for key in ("device", "date")}
        return rates_of(rows, f"measured, by {path.name}: {', '.join(sorted(about))}")
    except OSError as error:
        raise unreadable(path, error, REMEASURE) from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: not the rows of a bench ({type(error).__name__}: {error}); {REMEASURE}") from error


def rates_of(rows: Sequence[Mapping[str, Any]], basis: str) -> Rates:
    """Rates from rows of a bench: training as whole epochs had it, since a step takes longer among all else.

    Raises UserError where a part is missing; ValueError, TypeError or ArithmeticError for values that are no rates.
    """

    def row(part: str, unit: str) -> Mapping[str, Any]:
        for one in rows:
            if (one["part"], one["unit"]) == (part, unit) and not one["what"].startswith("first pass"):
                return one
        raise UserError(f"rates: no row of {part} in {unit} ({basis}); {REMEASURE}")

    shares = {one["what"].removeprefix("share of "): one["p50"] / 100 for one in rows if one["unit"] == "%"}
    others = sum(shares.get(name, 0.0) for name in ("load", "clustering", "save"))
    epochs, kmeans, bank = row("epoch", "epochs/s"), row("kmeans", "ms"), row("bank", "rows/s")
    n, d, k = _numbers(r"([\d,]+) x (\d+), K (\d+)", kmeans["what"])
    (epoch_clips,) = _numbers(r"([\d,]+) clips", epochs["what"])
    (dim,) = _numbers(r"x (\d+)", bank["what"])
    (gflop,) = _numbers(r"([\d.]{1,9}) GFLOP", row("step", "clips/s")["floor_is"])
    fixed = shares.get("clustering", 0.0) / _positive(epochs["p50"])
    loader = {one["what"].removesuffix(", two views"): one["p50"] for one in rows if one["part"] == "loader"}
    first = next((what for what in loader if what.startswith("first pass")), None)
    return Rates(
        basis=basis,
        training=_positive(row("epoch", "clips/s")["p50"]) / _positive(1 - others),
        gflop_per_clip=_positive(gflop),
        loader={what: _positive(rate) for what, rate in loader.items() if what != first},
        kmeans=2 * n * d * k / (_positive(kmeans["p50"]) / 1e3),
        clustering=fixed if epoch_clips <= FEW_CLIPS else 0.0,
        disk=_positive(bank["floor"]) * (dim * (2 if "bf16" in bank["what"] else 4) + 8),
        first_pass=_positive(loader[first]) * _numbers(r"clips of ([\d.]{1,9}) s", first)[0] if first else None,
    )


def _positive(value: Any) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{str(value)[:40]} is not a rate")
    return float(value)


def _numbers(pattern: str, text: str) -> list[float]:
    if (found := re.search(pattern, text)) is None:
        raise ValueError(f"{text[:60]!r} does not name what was measured")
    return [float(number.replace(",", "")) for number in found.groups()]
