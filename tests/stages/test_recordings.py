"""A file that packing cut is trained on in pieces and scored as one: numbers worked out beside, clip by clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from outcomes import Cli
from safetensors.torch import load_file
from same_runs import log_of
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.stream import Loader
from unfused_fast.embedding.embedder import load
from unfused_fast.evaluation.measure import Plan, measure
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import baseline_encoder, extract
from unfused_fast.stages.labels import labelled_clips
from unfused_fast.stages.linear_heads import train_heads
from unfused_fast.stages.protocol import few_labels, permuted, rounds_of

CPU = torch.device("cpu")
CLASSES = {"low": 300, "middle": 500, "high": 800}
"""Label -> lowest pitch in hertz; pitches reach into the next class, so that not all are told apart."""
SECONDS = (1.0, 2.4, 1.2, 3.6)
"""Of the files, in turn: 1, 2, 1 and 3 pieces of at most 1.3 s."""
FILES = {"train": 24, "valid": 12, "test": 12}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[SourceRow]:
    """48 files of three classes, of one to three pieces; each has labels for both kinds of set; a fold each of four."""
    folder, generator, found = tmp_path_factory.mktemp("long"), np.random.default_rng(0), []
    for split, files in FILES.items():
        for number in range(files):
            label = list(CLASSES)[number % 3]
            path = folder / f"{split}-{number:02d}.wav"
            times = np.arange(round(16000 * SECONDS[number % 4])) / 16000
            wave = np.sin(2 * np.pi * CLASSES[label] * generator.uniform(1, 2) * times)
            soundfile.write(path, 0.3 * wave + 0.1 * generator.standard_normal(len(times)), 16000)
            found.append(SourceRow(path, path.name, label, split, fold=1 + number // 3 % 4))
    return found


def packed(rows: list[SourceRow], out: Path) -> Path:
    pack(rows, out, workers=0, max_seconds=1.3, statistics=log_mel_statistics)
    return out


@pytest.fixture(scope="module")
def cut(rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(rows, tmp_path_factory.mktemp("sets") / "cut")


@pytest.fixture(scope="module")
def cut_several(rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a multi-label set: pitch, and `long` of the files that were cut."""
    several = [
        SourceRow(row.path, row.source, None, row.split, labels=(row.label or "", *(["long"] if number % 2 else [])))
        for number, row in enumerate(rows)
    ]
    return packed(several, tmp_path_factory.mktemp("sets") / "several")


def sources(shards: ShardSet, split: str) -> list[str]:
    return [str(source) for source in shards.clips_in(split).column("source").to_pylist()]


def by_source(shards: ShardSet, split: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Source -> mean of its clips' values."""
    found: dict[str, list[NDArray[Any]]] = {}
    for source, value in zip(sources(shards, split), values, strict=True):
        found.setdefault(source, []).append(value)
    return {source: np.mean(of_pieces, axis=0) for source, of_pieces in found.items()}


def test_scores_are_the_mean_over_the_pieces_of_a_recording(cut: Path) -> None:
    shards, config = open_shards(cut), with_values(Config(), {"eval.epochs": 20, "eval.standardize": False})
    clips, (head, knn) = measure(config, shards, {"logmel": ["logmel"]}, Plan(("linear", "knn")), CPU)
    frozen = baseline_encoder("logmel", config, CPU)
    features = {name: extract(frozen, shards, name, "encoder", "maxmean", CPU) for name in ("train", "test")}
    labels = {name: shards.clips_in(name).column("label").to_numpy() for name in ("train", "test")}
    assert len(features["train"]) == 42 and len(set(sources(shards, "train"))) == 24
    assert (head.train_clips, head.train_recordings, head.test_clips) == (42, 24, 21)
    assert len(head.rows) == 12, "a score for each test file"
    # the head is trained on clips as they are, and a file's scores are the mean of its clips'
    given = torch.from_numpy(labels["train"].astype(np.int64))
    assert head.rates[0] is not None
    (alone,) = train_heads(features["train"], given, 3, (head.rates[0],), config)
    theirs = by_source(shards, "test", (features["test"] @ alone[:-1] + alone[-1]).numpy())
    tested = [sources(shards, "test")[clip - shards.first_id("test")] for clip in clips.clip_ids[head.rows]]
    assert sorted(tested) == sorted(theirs)
    np.testing.assert_allclose(head.scores, np.stack([theirs[source] for source in tested]), atol=1e-3)
    # neighbours are files, by the mean features of their clips
    known, queries = (by_source(shards, name, features[name].numpy()) for name in ("train", "test"))
    of = {name: dict(zip(sources(shards, name), labels[name], strict=True)) for name in ("train", "test")}
    model = KNeighborsClassifier(10, weights="distance", metric="cosine", algorithm="brute")
    model.fit(np.stack(list(known.values())), [of["train"][source] for source in known])
    assert np.array_equal(knn.scores.argmax(axis=1), model.predict(np.stack([queries[source] for source in tested])))


@pytest.mark.parametrize("kind", ["cut", "cut_several"])
def test_the_command_counts_recordings(cli: Cli, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shards, out = request.getfixturevalue(kind), tmp_path / "out"
    arguments = ["--encoder", "logmel", "--knn", "--no-baselines", "--device", "cpu", "--label-fraction", "0.5,1"]
    done = cli("evaluate", shards, "--out", out, *arguments, "--set", "eval.epochs=20", "--json")
    assert done.code == 0, done.err
    assert done.err.count("84 labelled clips are pieces of 48 recordings") == 1
    kept = pq.read_table(out / "predictions.parquet").to_pylist()
    table = open_shards(shards).clips.to_pylist()
    for row in json.loads(done.out)["rows"]:
        assert (row["test_clips"], row["test_recordings"]) == (21, 12)
        assert row["train_recordings"] == 24 * row["label_fraction"]
        mine = [k for k in kept if (k["method"], k["label_fraction"]) == (row["method"], row["label_fraction"])]
        names = [table[k["clip_id"]]["source"] for k in mine]
        assert sorted(names) == [f"test-{number:02d}.wav" for number in range(12)]
        assert sorted(k["pieces"] for k in mine) == [1] * 6 + [2] * 3 + [3] * 3
        if kind == "cut":
            assert row["test"] == pytest.approx(np.mean([k["label"] == k["prediction"] for k in mine]))
        else:
            truth = np.array([[c in table[k["clip_id"]]["labels"] for c in range(4)] for k in mine])
            theirs = average_precision_score(truth, np.array([k["scores"] for k in mine]), average="macro")
            assert row["test"] == pytest.approx(theirs)


def test_few_labels_held_out_files_permuted_labels_and_folds_keep_the_pieces_together(cut: Path) -> None:
    shards = open_shards(cut)
    clips = labelled_clips(shards, by_folds=False)
    of = shards.clips.column("source").to_pylist()

    def files(rows: NDArray[np.int64]) -> list[str]:
        return [of[clip] for clip in clips.clip_ids[rows]]

    (part,) = rounds_of(clips, False, 0.15, seed=0)
    few = files(few_labels(clips, part.train, 0.25, seed=0))
    assert len(set(few)) == 6, "a quarter of 24 files, whatever their clips"
    assert all(few.count(name) == of.count(name) for name in set(few)), "and all clips of each"
    labels = permuted(clips, False, seed=0)
    given: dict[str, set[int]] = {}
    for name, label in zip(of, labels.tolist(), strict=True):
        given.setdefault(name, set()).add(label)
    assert all(len(found) == 1 for found in given.values()), "a file has one label still"
    assert sorted(next(iter(given[name])) for name in given if name.startswith("test")) == sorted([0, 1, 2] * 4)
    assert not set(files(part.train)) & (set(files(part.valid)) | set(files(part.test)))
    clips = labelled_clips(shards, by_folds=True)
    for fold in rounds_of(clips, True, 0.15, seed=0):
        assert not set(files(fold.train)) & (set(files(fold.valid)) | set(files(fold.test)))


@pytest.mark.parametrize("kind", ["cut", "cut_several"])
def test_fine_tuning_is_judged_by_recordings(
    cli: Cli, kind: str, request: pytest.FixtureRequest, tiny: list[str], tmp_path: Path
) -> None:
    """The head on the encoder's output of the packed clips gives the result's numbers again."""
    run, shards = tmp_path / "run", open_shards(request.getfixturevalue(kind))
    arguments = ["--encoder", "random", "--out", run, "--epochs", 3, "--set", "optim.lr=0.01", "--json", *tiny]
    done = cli("train", "finetune", shards.directory, *arguments)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["clips"] == {"train": 42, "valid": 21, "test": 21}
    assert result["recordings"] == {"train": 24, "valid": 12, "test": 12}
    judged = [line["valid"] for line in log_of(run)]
    assert result["chosen_epoch"] == 1 + judged.index(max(judged)) and result["valid"] == pytest.approx(max(judged))
    best, embedder = load_file(max((run / "checkpoints").glob("epoch-??????.safetensors"))), load(run, "cpu")
    for split in ("valid", "test"):
        logits = np.zeros((21, result["classes"]), np.float32)
        for batch in Loader(shards, split, embedder.config, device=CPU, batch_size=1).whole_clips():
            with torch.no_grad():
                output = embedder.encoder(batch.views[0], batch.frame_counts)
            pooled = output.frames.mean(dim=1) + output.frames.amax(dim=1)
            given = pooled @ best["best.classifier.weight"].T + best["best.classifier.bias"]
            logits[int(batch.clip_ids) - shards.first_id(split)] = given[0].numpy()
        found, column = by_source(shards, split, logits), "label" if kind == "cut" else "labels"
        labels = dict(zip(sources(shards, split), shards.clips_in(split).column(column).to_pylist(), strict=True))
        if kind == "cut":
            theirs = accuracy_score([labels[name] for name in found], [found[name].argmax() for name in found])
        else:
            truth = np.array([[number in labels[name] for number in range(4)] for name in found])
            theirs = average_precision_score(truth, np.stack([*found.values()]), average="macro")
        assert theirs == pytest.approx(result[split], abs=1e-5)
    assert ("confusion" in result) == (run / "confusion.png").exists() == (kind == "cut")


def test_train_linear_is_judged_by_recordings(cli: Cli, cut: Path, tmp_path: Path) -> None:
    arguments = ["--encoder", "logmel", "--out", tmp_path / "linear", "--device", "cpu", "--json"]
    result = json.loads(cli("train", "linear", cut, *arguments).out)
    done = cli("evaluate", cut, "--encoder", "logmel", "--no-baselines", "--out", tmp_path / "e", *arguments[4:])
    (row,) = json.loads(done.out)["rows"]
    assert np.array(result["confusion"]).sum() == 12 and result["recordings"]["valid"] == 12
    assert (result["test"], result["valid"]) == pytest.approx((row["test"], row["valid"]), abs=1e-6)
