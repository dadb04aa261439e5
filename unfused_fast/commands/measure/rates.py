"""How fast the parts of an epoch run, from rows of `unfused-fast bench`."""

from __future__ import annotations

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
    gflop_per_clip: float | None
    """Of the network that was measured; None: unknown."""
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
    except (
        ValueError,
        KeyError,
        StopIteration,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise UserError(f"{path}: not the rows of a bench ({type(error).__name__}: {error}); {REMEASURE}") from error


def rates_of(rows: Sequence[Mapping[str, Any]], basis: str) -> Rates:
    """Rates from rows of a bench: training as whole epochs had it, since a step takes longer among all else."""

    def rate(part: str, start: str = "", unit: str = "") -> float:
        found = [row for row in rows if row["part"] == part and row["what"].startswith(start) and unit in row["unit"]]
        if not found:
            raise UserError(f"rates: no row of {f'{part} {start}'.strip()} ({basis}); {REMEASURE}")
        return _positive(found[0]["p50"])

    shares = {row["what"].removeprefix("share of "): row["p50"] / 100 for row in rows if row["unit"] == "%"}
    others = sum(shares.get(name, 0.0) for name in ("load", "clustering", "save"))
    (kmeans,) = (row for row in rows if row["part"] == "kmeans")
    bank = next(row for row in rows if row["part"] == "bank")
    n, d, k = _numbers(r"([\d,]+) x (\d+), K (\d+)", kmeans["what"])
    epoch_clips, *_ = _numbers(r"([\d,]+) clips", next(row for row in rows if row["unit"] == "epochs/s")["what"])
    width = 2 if "bf16" in bank["what"] else 4
    first = [row for row in rows if row["what"].startswith("first pass")]
    length = float(_match(r"clips of ([\d.]{1,9}) s", first[0]["what"])[1]) if first else 0.0
    counted = re.match(r"([\d.]+) GFLOP", next(row["floor_is"] for row in rows if row["part"] == "step"))
    fixed = shares.get("clustering", 0.0) / rate("epoch", unit="epochs/s")
    return Rates(
        basis=basis,
        training=rate("epoch", unit="clips/s") / _positive(1 - others),
        gflop_per_clip=_positive(float(counted[1])) if counted else None,
        loader={
            store: rate("loader", store)
            for store in ("stream", "resident", "pinned", "mmap")
            if any(row["part"] == "loader" and row["what"].startswith(store) for row in rows)
        },
        kmeans=2 * n * d * k / (_positive(kmeans["p50"]) / 1e3),
        clustering=fixed if epoch_clips <= FEW_CLIPS else 0.0,
        disk=_positive(bank["floor"]) * (_numbers(r"x (\d+)", bank["what"])[0] * width + 8),
        first_pass=_positive(first[0]["p50"]) * _positive(length) if first else None,
    )


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{str(value)[:40]} is not a rate")
    return float(value)


def _match(pattern: str, text: str) -> re.Match[str]:
    if (found := re.search(pattern, text)) is None:
        raise ValueError(f"{text[:60]!r} does not name what was measured")
    return found


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in _match(pattern, text).groups()]
