"""How fast epochs run, from rows of `unfused-fast bench`."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfused_fast.commands.measure.parts import Bench, epoch, loader, step
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import READ_BY, Config, with_values
from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import read_json
from unfused_fast.training import Options, quietly, resolve_batch_size

QUICK_BATCHES = 4
"""Batches of the set that is measured on here."""
REMEASURE = "measure all parts with: unfused-fast bench all --json > FILE"


@dataclass(frozen=True)
class Rates:
    """What an epoch's time is computed from."""

    basis: str
    """Where the rates come from."""
    training: float
    """Clips a second of whole epochs, without loading."""
    gflop_per_clip: float
    """Of the network that was measured."""
    loader: Mapping[str, float]
    """Clips a second of each store."""
    first_pass: float | None
    """Seconds of audio a second, of the pass that makes the log-mels; None: not measured."""


def measured_here(config: Config, options: Options, clips: int, seconds: float) -> Rates:
    """A quick `bench` on this machine, with these settings, but K and a queue that fit its small set."""
    with tempfile.TemporaryDirectory(prefix="unfused-plan-") as name, quietly():
        batch = min(resolve_batch_size(config, clips), 64 if options.device.type == "cpu" else 512)
        count = QUICK_BATCHES * max(batch, 32)
        given = {"cluster.k": config.cluster.heads, "method.queue": (config.method.queue,)}
        read = {name: sizes for name, sizes in given.items() if config.method.name in READ_BY[name]}
        values = {
            name: "auto" for name, sizes in read.items() if any(size != "auto" and size > count for size in sizes)
        }
        shards = synthetic_set(Path(name), count, seconds)
        bench = Bench(shards, with_values(config, {**values, "train.batch_size": batch}), options, quick=True)
        rows = [row.as_json() for part in (loader, step, epoch) for row in part(bench)]
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

    Raises ValueError where a part is missing, and for values that are no rates.
    """

    def row(part: str, unit: str) -> Mapping[str, Any]:
        for one in rows:
            if (one["part"], one["unit"]) == (part, unit):
                return one
        raise ValueError(f"no row of {part} in {unit}")

    stores = {one["what"]: one["p50"] for one in rows if one["part"] == "loader"}
    first = next((what for what in stores if what.startswith("first pass")), None)
    loading = sum(one["p50"] / 100 for one in rows if one["what"] == "share of load")
    return Rates(
        basis=basis,
        training=_positive(row("epoch", "clips/s")["p50"]) / _positive(1 - loading),
        gflop_per_clip=_number(r"([\d.]{1,9}) GFLOP", row("step", "clips/s")["floor_is"]),
        loader={what.partition(",")[0]: _positive(rate) for what, rate in stores.items() if what != first},
        first_pass=_positive(stores[first]) * _number(r"clips of ([\d.]{1,9}) s", first) if first else None,
    )


def _positive(value: Any) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{str(value)[:40]} is not a rate")
    return float(value)


def _number(pattern: str, text: str) -> float:
    if (found := re.search(pattern, text)) is None:
        raise ValueError(f"{text[:60]!r} does not name what was measured")
    return _positive(found[1])
