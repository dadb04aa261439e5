"""The stages end to end through the command line: loss falls, compile changes nothing, labels do not leak."""

import json
import math
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch._inductor.config
import zarr
from outcomes import refused
from safetensors.numpy import load_file

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.optional import missing_compiler
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages import linear_heads
from unfused_fast.stages.protocol import split_round

PLAIN = ["--set", "aug.mixup.ratio=0", "--set", "aug.rrc.enabled=false", "--set", "model.dropout=0"]
"""Flags without augmentation and dropout: what a network of four channels can learn in seconds."""


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, np.ndarray]:
    (newest,) = sorted((run / "checkpoints").glob("*.safetensors"))[-1:]
    return {name: value for name, value in load_file(newest).items() if name.startswith("model.")}


def assert_equal_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_loss_falls(cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path) -> None:
    # clustered once: from one epoch to the next the targets stay, so losses can be compared
    first = ["--epochs", 20, "--set", "cluster.every_epochs=99", "--set", "optim.name=adamw", "--set", "optim.lr=0.01"]
    second = ["--teacher", pretrained, "--epochs", 12, "--set", "optim.lr=0.05"]
    for stage, flags, share in (("pretrain", first, 0.9), ("distill", second, 0.8)):
        done = cli("train", stage, tones, "--out", tmp_path / stage, *tiny, *PLAIN, *flags)
        assert done.code == 0, done.err
        losses = [row["loss"] for row in log(tmp_path / stage)]
        assert losses[-1] < share * losses[0]


def test_pretrain_writes_everything(cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "pretrain", tones, "--out", run, "--epochs", 3, "--json", *tiny)
    assert done.code == 0, done.err
    rows, result = log(run), json.loads(done.out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["ln_k"] == pytest.approx(math.log(4), abs=1e-4) for row in rows)
    assert rows[0]["nmi"] is None and all(0 <= row["nmi"] <= 1 for row in rows[1:])
    logged = {"empty_clusters", "perplexity", "largest_cluster", "mean_cosine", "lr", "clips_per_second", "parts"}
    logged |= {"mfu", "memory_gb", "data_share"}
    assert logged <= rows[0].keys()
    assert result == json.loads((run / "result.json").read_text())
    assert {"stage", "clips", "seed", "seconds", "config_digest", "data_digest", "k"} <= result.keys()
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["versions"]["torch"] and recorded["shards"] == result["data_digest"]
    assert any((run / "tensorboard").iterdir())
    bank = zarr.open_group(run / "bank.zarr" / "gen-000003", mode="r")
    np.testing.assert_allclose(np.linalg.norm(bank["embeddings"][:], axis=1), 1, atol=1e-5)
    assert not list(run.rglob("*.pt")) and not list(run.rglob("*.pkl"))
    screen = next(line for line in done.err.splitlines() if line.startswith("pretrain 3/3"))
    assert all(word in screen for word in ("NMI", "perplexity", "empty", "largest", "mean cosine", "effective rank"))
    assert (run / "clusters.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(missing_compiler("C++") is not None, reason=f"needs {missing_compiler('C++')}")
@pytest.mark.parametrize("view, rate", [("separate", 0.5), ("training", 0.01)])  # at a higher rate rounding grows
def test_compiled_losses_are_the_eager_ones(
    cli, unlabelled: Path, tiny: list[str], tmp_path: Path, view: str, rate: float
) -> None:
    # without dropout, whose random numbers the compiler draws in another order
    settings = ("model.dropout=0", f"optim.lr={rate}", f"bank.view={view}")
    for flag in ("--compile", "--no-compile"):
        flags = ["--epochs", 2, *(word for value in settings for word in ("--set", value)), flag]
        with torch._inductor.config.patch(compile_threads=1):  # in this process
            done = cli("train", "pretrain", unlabelled, "--out", tmp_path / flag, *tiny, *flags)
        assert done.code == 0, done.err
    losses = [[row["loss"] for row in log(tmp_path / flag)] for flag in ("--compile", "--no-compile")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_pseudo_labels_and_student_do_not_see_labels(
    cli, tones: Path, tone_rows: list[SourceRow], pack_rows, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    labels = np.random.default_rng(3).permutation([row.label for row in tone_rows])
    shuffled = pack_rows(
        [replace(row, label=str(label)) for row, label in zip(tone_rows, labels, strict=True)], tmp_path / "set"
    )
    for name, shards in (("true", tones), ("shuffled", shuffled)):
        done = cli("train", "distill", shards, "--teacher", pretrained, "--out", tmp_path / name, "--epochs", 2, *tiny)
        assert done.code == 0, done.err
    first, second = (tmp_path / name / "pseudo_labels.parquet" for name in ("true", "shuffled"))
    assert first.read_bytes() == second.read_bytes()
    assert set(pq.read_table(first).column("pseudo_label").to_pylist()) == {0, 1, 2}, "K is the number of class names"
    assert_equal_weights(tmp_path / "true", tmp_path / "shuffled")


@pytest.mark.parametrize("encoder", ["random", "logmel", "pretrained"])
def test_linear_tells_separable_classes_apart(
    cli, tones: Path, pretrained: Path, tiny_heads: list[str], tmp_path: Path, encoder: str
) -> None:
    source = pretrained if encoder == "pretrained" else encoder
    done = cli("train", "linear", tones, "--encoder", source, "--out", tmp_path / "run", "--json", *tiny_heads)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["test"] > 0.8 and result["clips"] == {"train": 60, "valid": 18, "test": 18}
    confusion = np.array(result["confusion"])
    assert confusion.sum() == 18 and confusion.trace() / 18 == pytest.approx(result["test"], abs=1e-6)
    f1 = 2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1))
    assert result["macro_f1"]["test"] == pytest.approx(f1.mean(), abs=1e-6)
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert ("features of an encoder with model.channels = 4," in done.err) == (encoder == "random")


def test_shuffled_labels_are_those_of_the_same_split(tones: Path) -> None:
    """Which score chance: tests/evaluation/test_evaluate.py."""
    plain, shuffled = (
        split_round(with_values(Config(), {"eval.shuffle_labels": shuffle}), open_shards(tones), None)
        for shuffle in (False, True)
    )
    assert np.array_equal(plain[1].train, shuffled[1].train)
    for rows in plain[1]:
        first, second = plain[0].targets[rows], shuffled[0].targets[rows]
        assert not np.array_equal(first, second) and np.array_equal(np.sort(first), np.sort(second))


@pytest.mark.parametrize(
    ("part", "features"), [("encoder=student3", 4 * 8), ("features=block3", 4 * 8), ("features=block2+encoder", 96)]
)
def test_layers_and_low_labels(
    cli, tones: Path, pretrained: Path, tiny_heads: list[str], tmp_path: Path, part: str, features: int
) -> None:
    flags = ["--set", f"eval.{part}", "--set", "eval.label_fraction=0.1", "--json"]
    done = cli("train", "linear", tones, "--encoder", pretrained, "--out", tmp_path / "run", *tiny_heads, *flags)
    result = json.loads(done.out)
    assert result["features"] == features and result["clips"]["train"] == 6


def test_all_says_which_encoder_to_keep(cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "all", tones, "--out", run, "--epochs", 2, "--json", *tiny)
    assert done.code == 0, done.err
    verdict = json.loads(done.out)
    best = max(("stage 1 (DECAR-v2)", "stage 2 (UnFuSeD)"), key=lambda name: verdict["valid"][name])
    assert verdict["keep"] == best and set(verdict["valid"]) == {"random", "stage 1 (DECAR-v2)", "stage 2 (UnFuSeD)"}
    rows = json.loads(cli("report", run, "--json").out)
    assert sorted(row["stage"] for row in rows) == ["distill", "linear", "linear", "linear", "pretrain"]
    markdown = cli("report", run, "--markdown").out.splitlines()
    assert len(markdown) == 2 + 5 and all(line.startswith("| ") for line in markdown)


@pytest.mark.parametrize(("stage", "picture"), [("linear", "confusion.png"), ("pretrain", "clusters.png")])
def test_a_picture_that_cannot_be_drawn_loses_no_result(
    cli, tones: Path, tiny: list[str], tiny_heads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stage: str, picture: str,
) -> None:  # fmt: skip
    """Matplotlib is gone; where it is back, a finished run of linear gets its picture without training."""
    out, flags = tmp_path / "out", ["--encoder", "logmel"] if stage == "linear" else ["--epochs", 1]
    command = ["train", stage, tones, "--out", out, *flags, *(tiny_heads if stage == "linear" else tiny)]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        done = cli(*command)
    assert done.code == 0 and f"{out / picture}: not drawn (a picture needs Matplotlib" in done.err, done.err
    assert picture not in done.out and not (out / picture).exists()
    result = (out / "result.json").read_bytes()
    again = cli(*command, "--resume")
    assert again.code == 0 and "already finished" in again.err and (out / "result.json").read_bytes() == result
    assert (out / picture).exists() == (stage == "linear")


@pytest.mark.parametrize("norm", ["dataset", "wave_l2"])
def test_silent_clips_are_distilled_scored_and_fine_tuned(
    cli, tone_rows: list[SourceRow], pack_rows, tiny: list[str], tiny_heads: list[str], tmp_path: Path, norm: str
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(17000), 16000)
    rows = [replace(row, path=tmp_path / "silence.wav") if n % 4 == 0 else row for n, row in enumerate(tone_rows)]
    shards, run, flags = pack_rows(rows, tmp_path / "set"), tmp_path / "run", ["--set", f"data.norm={norm}"]
    assert cli("train", "pretrain", shards, "--out", run, "--epochs", 1, *tiny, *flags).code == 0
    for stage, more in (
        ("distill", ["--teacher", run, "--epochs", 1, "--set", "pseudo.feature=projector"]),
        ("linear", ["--encoder", run, "--epochs", 2]),
        ("finetune", ["--encoder", run, "--epochs", 1]),
    ):
        own = tiny_heads if stage == "linear" else tiny
        done = cli("train", stage, shards, "--out", tmp_path / stage, "--json", *own, *flags, *more)
        assert done.code == 0 and "NaN" not in done.out, done.err
    assert cli("evaluate", shards, "--encoder", run, "--knn", "--out", tmp_path / "e", "--device", "cpu").code == 0


def test_settings_that_an_encoder_brings_itself_are_refused(
    cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    given = [tones, "--encoder", pretrained, "--out", tmp_path / "out", *tiny, "--set", "model.channels=8"]
    for command in (["train", "linear"], ["train", "finetune"], ["evaluate"]):
        done = cli(*command, *given)
        refused(done, "--set model.channels=8", pretrained, "has its own network", "model.channels = 4; leave")
    for command, setting, advice in (
        (["train", "linear"], "train.epochs=7", "use --set eval.epochs"),
        (["evaluate"], "optim.lr=99", "use --set eval.lr"),
        (["evaluate"], "aug.mixup.ratio=0", "leave it out"),
    ):
        name, done = setting.partition("=")[0], cli(*command, *given[:5], "--set", setting)
        refused(done, f"--set {name}: linear heads do not read it", advice)
    assert not (tmp_path / "out").exists()
    read = ["--set", "model.dropout=0.1", "--epochs", 1]
    assert cli("train", "finetune", *given[:-2], *read).code == 0


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (MemoryError(), "not enough memory; end other programs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory; end other programs"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "not enough memory on the GPU; end"),
    ],
)
def test_too_little_memory_is_said_and_features_need_no_thread_of_python(
    cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Exception, said: str
) -> None:
    """A thread that finds no memory as it starts keeps the one that starts it waiting for ever."""

    def fails(*given: object, **named: object) -> None:
        raise lacking

    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    monkeypatch.setattr(linear_heads, "train_heads", fails)
    flags = ["--out", tmp_path / "out", "--device", "cpu", "--data", "stream"]
    done = cli("train", "linear", tones, "--encoder", "logmel", *flags)
    refused(done, said)
    assert not (tmp_path / "out" / "result.json").exists()
