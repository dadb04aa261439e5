"""The weights and the card of `base`, from a run:

python encoders/base/ship.py RUN                weights in 16 bit and card to unfused_fast/base; build.sh ends with it
python encoders/base/ship.py --tasks SETS       figures of the weights that are there, on every labelled set below SETS,
                                                to figures.json and into the card; reads the test

Figures of other weights are not shown: figures.json names the encoder by its digest.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import torch

import unfused_fast
from unfused_fast.config import SHIPPED, preset, with_values
from unfused_fast.embedding import Embedder, export_hub
from unfused_fast.evaluation import Plan, markdown, mean_and_error, percent
from unfused_fast.evaluation.measure import measure
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages import metric_of
from unfused_fast.training import encoder_place, read_description, read_result, write_json

HERE, FOLDER = Path(__file__).parent, encoder_place(SHIPPED)
FIGURES = HERE / "figures.json"
ENCODERS = {"base": SHIPPED, "random encoder": "random", "log-mel": "logmel"}
SEEDS = 3
"""Of the heads, and of the random encoder: five of its seeds differ by 6 points on the mean."""
JUDGED = 7
"""Tasks of the mean, the first of benchmarks/corpus.py, whose order `measured` keeps."""
TASKS = (
    *("mandarin_tone", "mandarin_initial", "speaker_id", "hero_voice", "words_synth", "instrument_family"),
    *("sound_event", "audio_type", "music_title"),
)
CLASSES = {
    "public domain, CC0, CC-BY, MIT, BSD and alike": (),
    "CC-BY-SA, Free Art": ("CC-BY-SA", "LAL"),
    "GPL, LGPL": ("GPL",),
}


def main() -> None:
    """Weights, figures, card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run of train pretrain")
    parser.add_argument("--tasks", type=Path, help="folder of labelled shard sets")
    given = parser.parse_args()
    if given.run is not None:
        result = read_result(given.run) or {}
        export_hub(given.run, str(FOLDER), overwrite=True, half=True)
        recorded = json.loads((FOLDER / "config.json").read_text())
        trained = {"clips": result["clips"]["train"], "epochs": result["epochs"]}
        write_json(FOLDER / "config.json", {**recorded, "trained": trained})
    embedder = unfused_fast.load(SHIPPED, device="cpu")
    if given.tasks is not None:
        write_json(FIGURES, {"digest": embedder.digest, "tasks": dict(measured(given.tasks))})
    replace_file(FOLDER / "README.md", card(embedder).encode())
    print(f"wrote {FOLDER}: {(FOLDER / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def measured(sets: Path) -> Iterator[tuple[str, dict[str, dict[str, list[float]]]]]:
    """Task -> encoder -> accuracy of the linear head on validation and test, a number for each seed."""
    config = with_values(preset("recommended", "linear"), {"data.store": "resident"})
    for task in (name for name in TASKS if (sets / name).is_dir()):
        clips, found = measure(
            config,
            open_shards(sets / task),
            {name: [encoder] for name, encoder in ENCODERS.items()},
            Plan(seeds=SEEDS),
            torch.device("cpu"),
        )
        yield (
            task,
            {
                name: {
                    "valid": [one.valid for one in found if one.encoder == name],
                    "test": [metric_of(clips, one.rows, one.scores) for one in found if one.encoder == name],
                }
                for name in ENCODERS
            },
        )


def card(embedder: Embedder) -> str:
    """README.md of the folder, by card.md."""
    recorded = read_description(FOLDER)
    assert recorded is not None
    config, trained = recorded["config"], recorded["trained"]
    with (HERE / "sources.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["used"] == "yes"]
    seen = trained["clips"] * trained["epochs"]
    facts = {
        "method": config["method.name"],
        "encoder": f"AudioNTT, {config['model.channels']} channels, "
        f"{sum(parameter.numel() for parameter in embedder.encoder.parameters()):,} parameters",
        "embedding": f"{embedder.scene_embedding_size} values a clip, pooled by {embedder.pool}, or a row every 80 ms",
        "input": "audio of any rate and length, one channel, brought to 16 kHz; log-mel of 64 bins",
        "trained on": f"{trained['clips']:,} clips for {trained['epochs']} epochs: {seen / 1e6:.2f} million clips seen",
        "weights": "float16 filters and matrices, float32 biases and statistics",
        "digest": embedder.digest,
    }
    return (
        (HERE / "card.md")
        .read_text()
        .format(
            size=embedder.scene_embedding_size,
            facts=markdown(["what", "value"], [list(pair) for pair in facts.items()]),
            figures=figures(embedder.digest),
            classes=markdown(["licences of the recordings", "clips", "hours"], [*by_class(rows)]),
            names="\n".join(names(rows)),
        )
    )


def figures(digest: str) -> str:
    """The table of figures.json, if it is of these weights."""
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if found.get("digest") != digest:
        return "These weights have not been measured yet (`python encoders/base/ship.py --tasks SETS`)."
    tasks: Mapping[str, Mapping[str, Mapping[str, list[float]]]] = found["tasks"]
    rows = [[task, *(percent(*mean_and_error(of[name]["test"])) for name in ENCODERS)] for task, of in tasks.items()]
    judged = list(tasks.values())[:JUDGED]
    for split in ("test", "valid"):
        by_seed = {name: [*map(fmean, zip(*(of[name][split] for of in judged), strict=True))] for name in ENCODERS}
        means = [percent(*mean_and_error(by_seed[name])) for name in ENCODERS]
        rows.append([f"mean of the first {len(judged)}, {split}", *means])
    return (
        "Accuracy on test in % of a linear head on the frozen encoder, its rate chosen on validation; mean ± standard "
        f"error over {SEEDS} seeds of the heads, with which the random encoder changes too.\n\n"
        + markdown(["task", *ENCODERS], rows)
    )


def by_class(rows: list[dict[str, str]]) -> Iterator[list[str]]:
    """Clips and hours of each class of licences; of several licences to choose from the first counts."""
    for title in CLASSES:
        own = [row for row in rows if class_of(row["licence"]) == title]
        yield [title, f"{sum(int(row['clips']) for row in own):,}", f"{sum(float(row['hours']) for row in own):.1f}"]
    words = 2000
    yield ["synthetic words over sounds of these", f"{words:,}", f"{words / 3600:.1f}"]


def class_of(licence: str) -> str:
    """The title of its class."""
    free, *others = CLASSES
    if "MPL" in licence:
        return free
    return next((title for title in others if any(part in licence for part in CLASSES[title])), free)


def names(rows: list[dict[str, str]]) -> Iterator[str]:
    """A line for each package: version, licences, whom to thank."""
    for package in dict.fromkeys(row["package"] for row in rows):
        own = [row for row in rows if row["package"] == package]
        licences, people = (dict.fromkeys(row[name] for row in own) for name in ("licence", "named"))
        yield f"- {package} {own[0]['version']} ({', '.join(licences)}): {'; '.join(people)}"


if __name__ == "__main__":
    main()
