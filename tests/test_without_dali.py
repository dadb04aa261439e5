"""Where DALI is not installed: libsndfile and torch make the log-mels, and all but streaming works as with DALI."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from outcomes import Cli, refused, same_checkpoint

from unfused_fast.shards.sources.row import SourceRow

SENTENCE = "data: libsndfile decodes the audio, because DALI is not installed"


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`hide("nvidia.dali")`: it is not installed from here on."""
    return lambda *modules: [monkeypatch.setitem(sys.modules, module, None) for module in modules]


def test_all_stages_and_what_reads_their_encoders(
    cli: Cli, tiny: list[str], tone_rows: list[SourceRow], tmp_path: Path, hide: Callable[..., None]
) -> None:
    """From files to embeddings: runs, scores and embeddings are those with DALI, of one back end of k-means."""
    table = tmp_path / "table.csv"
    lines = [f"{row.path},{row.label},{row.split},{row.group}" for row in tone_rows]
    table.write_text("\n".join(["path,label,split,group", *lines]))
    for folder in (tmp_path / "with", tmp_path / "without"):
        if folder.name == "without":
            hide("nvidia.dali", "faiss")
        shards, student = folder / "shards", folder / "runs" / "distill"
        assert cli("shard", table, shards, "--workers", 1).code == 0
        flags = [*tiny, "--set", "cluster.backend=torch"]
        done = cli("train", "all", shards, "--out", folder / "runs", "--epochs", 1, *flags)
        assert done.code == 0 and done.err.count(SENTENCE) == (folder.name == "without"), done.err
        common = ["--encoder", f"student={student}", "--device", "cpu", "--out"]
        done = cli("evaluate", shards, *common, folder / "evaluated", "--no-baselines", "--set", "eval.epochs=1")
        assert done.code == 0 and done.err.count(SENTENCE) == (folder.name == "without"), done.err
        assert cli("embed", shards, "--encoder", student, *common[2:], folder / "all.npz").code == 0
    for stage in ("pretrain", "distill"):
        same_checkpoint(tmp_path / "with/runs" / stage, tmp_path / "without/runs" / stage, epoch=1)
    tables = [(tmp_path / folder / "evaluated/evaluation.md").read_text() for folder in ("with", "without")]
    assert tables[0] == tables[1]
    with np.load(tmp_path / "with/all.npz") as wanted, np.load(tmp_path / "without/all.npz") as found:
        np.testing.assert_allclose(found["embeddings"], wanted["embeddings"], atol=1e-4)


def test_only_streaming_needs_dali(
    pretrain: Cli,
    tones: Path,
    pretrained: Path,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    hide: Callable[..., None],
) -> None:
    hide("nvidia.dali")
    done = pretrain(tones, tmp_path / "out", "--data", "stream")
    refused(done, "data.store = stream", "needs DALI, which is not installed", "use --data resident or mmap")
    assert not (tmp_path / "out").exists()
    done = pretrain(copy_of(tones), tmp_path / "out", "--data", "mmap")
    assert done.code == 0 and SENTENCE in done.err, done.err
    same_checkpoint(pretrained, tmp_path / "out")


def test_a_clip_that_cannot_be_decoded_is_named(
    pretrain: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path, hide: Callable[..., None]
) -> None:
    hide("nvidia.dali", "faiss")
    shards = copy_of(tones)
    tar = shards / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"fLaC" if b"fLaC" in content else b"RIFF")] = 0
    tar.write_bytes(content)
    done = pretrain(shards, tmp_path / "out")
    refused(done, tar.name, "clip 000000000: ", f"unfused-fast check {shards} reports what is wrong")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    done = pretrain(shards, tmp_path / "out", "--skip-bad", 1)
    assert done.code == 0 and "cluster.backend: auto is torch, because faiss is not installed" in done.err
