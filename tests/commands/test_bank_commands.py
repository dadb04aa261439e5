"""`unfused-fast bank info | export`: what other programs read is the bank, bit for bit; damage and misuse are told."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from outcomes import Cli, refused

from unfused_fast.clustering import bank_files
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_files import open_bank
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow

IDS = torch.arange(100) % 7


@pytest.fixture(params=["fp32", "bf16"])
def bank(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hundred rows in several chunks, epochs 3 and 4."""
    monkeypatch.setattr(bank_files, "CHUNK_BYTES", 512)
    filled = MemoryBank(100, 16, 50, torch.device("cpu"), request.param)
    for epoch in (3, 4):
        filled.write(torch.arange(50, 150), torch.randn(100, 16) * torch.logspace(-30, 30, 100)[:, None])
        filled.snapshot(tmp_path / "bank.zarr", epoch, IDS, step=epoch * 9)()
    assert len(list(open_bank(tmp_path).blocks())) > 4
    return tmp_path / "bank.zarr"


def rows_of(bank: Path, epoch: int | None = None) -> np.ndarray:
    return open_bank(bank, epoch).rows().float().numpy()


def test_info(cli: Cli, bank: Path) -> None:
    done = cli("bank", "info", bank.parent, "--verify", "--json")
    first, second = json.loads(done.out)["generations"]
    norms = np.linalg.norm(rows_of(bank, 4).astype(np.float64), axis=1)
    assert done.code == 0 and (first["epoch"], second["epoch"], second["step"]) == (3, 4, 36)
    assert (second["rows"], second["dim"], second["first_clip_id"], second["verified"]) == (100, 16, 50, True)
    assert second["norms"]["mean"] == pytest.approx(norms.mean(), rel=1e-5)
    assert second["bytes"] == sum(path.stat().st_size for path in (bank / "gen-000004").rglob("*") if path.is_file())
    done = cli("bank", "info", bank)
    assert done.code == 0 and open_bank(bank).manifest.dtype in done.out and "not read" in done.out
    assert "hold" in cli("bank", "info", bank / "gen-000004", "--verify").out


def test_info_names_damage(cli: Cli, bank: Path) -> None:
    shard = bank / "gen-000004/embeddings/c/1/0"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    assert cli("bank", "info", bank).code == 0, "without --verify no row is read"
    done = cli("bank", "info", bank, "--verify")
    assert done.code == 1 and f"{shard}: rows " in done.out and "DAMAGED" in done.out and "hold" in done.out
    (bank / "gen-000003/zarr.json").write_text("{")
    done = cli("bank", "info", bank, "--verify", "--json")
    first, second = json.loads(done.out)["generations"]
    assert done.code == 1 and "zarr.json" in first["damaged"][0] and "(clips " in second["damaged"][0]
    out = bank.parent / "out.npz"
    for epoch in (3, 4):
        refused(cli("bank", "export", bank, "--out", out, "--epoch", epoch), "see: unfused-fast bank info")
    assert sorted(path.name for path in bank.parent.iterdir()) == ["bank.zarr"]


def read_npz(out: Path) -> tuple[np.ndarray, list[int], list[int]]:
    with np.load(out) as arrays:
        return arrays["embeddings"], arrays["assignments"].tolist(), arrays["clip_ids"].tolist()


def read_parquet(out: Path) -> tuple[np.ndarray, list[int], list[int]]:
    table = pq.read_table(out)
    kind = table.schema.field("embedding").type
    assert (kind.list_size, str(kind.value_type)) == (16, "float")
    values = np.array(table["embedding"].to_pylist(), np.float32)
    return values, table["assignment"].to_pylist(), table["clip_id"].to_pylist()


def read_csv(out: Path) -> tuple[np.ndarray, list[int], list[int]]:
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [[row[f"embedding_{place}"] for place in range(16)] for row in rows]
    return np.array(values, np.float32), *([int(row[name]) for row in rows] for name in ("assignment", "clip_id"))


def read_projector(out: Path) -> tuple[np.ndarray, list[int], list[int]]:
    """As TensorBoard reads it."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector import projector_plugin
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = text_format.Parse((out / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    values = projector_plugin._read_tensor_tsv_file(str(out / embedding.tensor_path))
    with (out / embedding.metadata_path).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return values, [int(row["assignment"]) for row in rows], [int(row["clip_id"]) for row in rows]


READERS: dict[str, Callable[[Path], tuple[np.ndarray, list[int], list[int]]]] = {
    "npz": read_npz,
    "parquet": read_parquet,
    "csv": read_csv,
    "projector": read_projector,
}


def named(kind: str) -> str:
    return "out" if kind == "projector" else f"out.{kind}"


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("epoch", [None, 3])
def test_export_gives_every_number_as_it_is(cli: Cli, bank: Path, kind: str, epoch: int | None) -> None:
    out = bank.parent / "folder" / named(kind)
    done = cli("bank", "export", bank, "--out", out, "--json", *(["--epoch", epoch] if epoch else []))
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["epoch"] == (epoch or 4) and facts["format"] == kind
    values, assignments, clip_ids = READERS[kind](out)
    assert np.array_equal(np.asarray(values, np.float32), rows_of(bank, epoch))
    assert assignments == IDS.tolist() and clip_ids == list(range(50, 150))
    assert list(out.parent.iterdir()) == [out]
    refused(cli("bank", "export", bank, "--out", out), out, "it exists", "choose another path")


@pytest.mark.parametrize("kind", ["parquet", "projector"])
def test_export_with_the_clips_of_a_run(
    cli: Cli, tone_rows: list[SourceRow], pack_rows: Any, tiny: list[str], tmp_path: Path, kind: str
) -> None:
    """Tabs, quotes and line ends in names neither break the table nor stop the export."""
    rows = [
        SourceRow(row.path, f'{row.label}\t"{number}"\nb.wav', f'c"\t{row.label}')
        for number, row in enumerate(row for row in tone_rows if row.split == "train")
    ]
    shards, run, out = pack_rows(rows, tmp_path / "set"), tmp_path / "run", tmp_path / named(kind)
    assert cli("train", "pretrain", shards, "--out", run, "--epochs", 1, *tiny).code == 0
    done = cli("bank", "export", run, "--out", out, "--shards", shards)
    assert done.code == 0, done.err
    if kind == "parquet":
        clips = open_shards(shards).clips.to_pylist()
        for row in pq.read_table(out).to_pylist():
            name = clips[row["clip_id"]]["source"].split("\t")[0]
            assert row["source"].startswith(f"{name}\\t") and row["label"].endswith(f"\\t{name}"), row
        return
    lines = (out / "metadata.tsv").read_text().splitlines()
    assert len(lines) == 61 and {line.count("\t") for line in lines} == {4}


def test_export_of_other_clips(cli: Cli, bank: Path, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    refused(
        cli("bank", "export", bank, "--out", tmp_path / "out.parquet", "--shards", tones),
        "the memory bank has clips 50 to 149",
        "train 0 to 59",
        "name the shard set that the run was trained on",
    )
    refused(cli("bank", "export", bank, "--out", tmp_path / "out.npz", "--epoch", 9), "it has 3, 4")
    refused(cli("bank", "export", bank, "--out", tmp_path / "out.txt"), "out.txt: want a name that ends in .npz")
    refused(cli("bank", "info", tmp_path / "nothing"), "holds no memory bank", "train pretrain")
    assert list(tmp_path.glob("out*")) == []


def test_a_failed_export_leaves_nothing(cli: Cli, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unfused_fast.clustering.bank_export as module

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.zipfile, "ZipFile", full)
    done = cli("bank", "export", bank, "--out", bank.parent / "out.npz")
    refused(done, "out.npz: cannot be written (No space left on device)")
    assert list(bank.parent.iterdir()) == [bank]


def test_a_run_in_bf16_resumes_bit_for_bit(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    def train(out: Path, *flags: str) -> Any:
        every = ["--epochs", 2, "--set", "bank.dtype=bf16", *tiny]
        return cli("train", "pretrain", tones, "--out", out, *every, *flags)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole).code == 0
    shutil.copytree(whole, parts)
    (parts / "result.json").unlink()
    (parts / "checkpoints/epoch-000002.json").unlink()  # as if killed between bank and checkpoint
    done = train(parts, "--resume")
    assert done.code == 0 and "resuming after epoch 1" in done.err
    one, other = open_bank(whole), open_bank(parts)
    assert one.manifest == other.manifest and one.manifest.dtype == "bfloat16"
    assert one.manifest.norms["max"] == pytest.approx(1, abs=0.01)
