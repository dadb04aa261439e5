"""What is different about a run that is to go on: settings, data, inputs, and versions that may change the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError

COMPARED_VERSIONS = ("unfused-fast", "torch")
"""Versions that have to be the same. Ours: these compute; a run goes on under another Python, say."""
FREE = ("train.save_every",)
"""Fields that may change from one part of a run to the next: no number depends on them."""
SHOWN = 6
"""Differences named in an error."""

Differences = dict[str, tuple[Any, Any]]
"""Name -> what was recorded, and what is now."""


def differences(out: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> Differences:
    """Of two contents of config.json. Raises UserError for runs of different stages."""
    if recorded["stage"] != wanted["stage"]:
        raise UserError(
            f"{out}: it holds a run of stage {recorded['stage']}, not {wanted['stage']}; choose another --out"
        )
    before, after = _compared(recorded), _compared(wanted)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }


def in_words(found: Differences) -> str:
    """A part of a sentence, which names the first few."""
    named = [f"{name} was {before}, now {after}" for name, (before, after) in found.items()]
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return "; ".join(named[:SHOWN]) + more


def order_of_batches(description: Mapping[str, Any]) -> list[Any]:
    """What decides which clips are in batch n of an epoch: a run stopped within an epoch goes on with the same."""
    settings, left_out = description["config"], description["inputs"].get("left_out")
    names = "train.seed", "train.batch_size", "data.sampler"
    return [description["shards"], *(settings[name] for name in names), *([left_out] if left_out else [])]


def _compared(description: Mapping[str, Any]) -> dict[str, Any]:
    versions, settings = description.get("versions", {}), description["config"]
    return {
        **{name: value for name, value in settings.items() if name not in FREE},
        "shards": description["shards"],
        **description["inputs"],
        **{f"version of {name}": versions.get(name) for name in COMPARED_VERSIONS},
    }
