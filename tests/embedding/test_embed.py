"""`unfused-fast embed`: what is written is what the embedder gives for the same recordings, whatever interrupts it."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from embedded import expected, rows_of, table_of
from outcomes import Cli, refused

from unfused_fast.embedding.embedder import Embedder
from unfused_fast.embedding.files import embed_files
from unfused_fast.embedding.sources import embed_rows
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import extract, load_encoder


def test_a_folder(cli: Cli, pretrained: Path, embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tones.npz"
    done = cli("embed", folder, "--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1, "--json")
    assert done.code == 0, done.err
    paths = sorted(folder.iterdir())
    found, facts = table_of(out), json.loads(done.out)
    np.testing.assert_allclose(found["embeddings"], expected(embedder, paths), rtol=1e-4, atol=1e-5)
    assert list(found["path"]) == [str(path) for path in paths]
    np.testing.assert_allclose(found["seconds"], [soundfile.info(path).duration for path in paths], atol=1e-4)
    assert facts["encoder"] == embedder.digest
    assert (facts["files"], facts["rows"], facts["rejected"]) == (96, 96, {})
    speed = facts["times_real_time"] * facts["seconds"]
    assert speed == pytest.approx(found["seconds"].sum(), rel=0.05)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, f"{out.name}.rejected.csv"}
    refused(cli("embed", folder, "--encoder", pretrained, "--out", out), out, "--overwrite")
    refused(cli("embed", folder, "--encoder", pretrained, "--out", tmp_path / "a.npz", "--frames"), "--frames")
    assert cli("embed", folder, "--out", tmp_path / "a.csv", "--frames", "--pool", "max").code == 2


@pytest.mark.parametrize("frames", [False, True])
def test_every_format_holds_the_same(embedder: Embedder, folder: Path, tmp_path: Path, frames: bool) -> None:
    paths = sorted(folder.iterdir())[:5]
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    steps = [embedder.embed_frames(wave, 16000) for wave in waves]
    whole = [embedder.embed(wave, 16000).numpy() for wave in waves]
    rows = [made[0].numpy() for made, _ in steps] if frames else whole
    owners = np.repeat(range(5), [len(some) for some in rows])
    for ending in ("parquet", "zarr", "csv", "CSV", *(() if frames else ("npz",))):
        out = tmp_path / f"rows.{ending}"
        embed_files(embedder, rows_of(*paths), out, frames=frames, workers=0)
        found = table_of(out)
        np.testing.assert_allclose(found["embeddings"], np.concatenate(rows), rtol=1e-4, atol=1e-5, err_msg=ending)
        if frames:
            np.testing.assert_array_equal(found["timestamp_ms"], torch.cat([times[0] for _, times in steps]).numpy())
        if frames and ending == "zarr":
            assert found["rows"].tolist() == [len(some) for some in rows]
            assert found["first_row"].tolist() == [owners.tolist().index(place) for place in range(5)]
        own = range(5) if ending == "zarr" else owners
        assert list(found["path"]) == [str(paths[place]) for place in own], ending
        lengths = [len(waves[place]) / 16000 for place in own]
        np.testing.assert_allclose(found["seconds"], lengths, atol=1e-4)
        if ending.lower() != "csv":
            pool = None if frames else "maxmean"
            assert (found["about"]["encoder"], found["about"]["pool"]) == (embedder.digest, pool)


def test_a_shard_set_gives_the_features_of_training(cli: Cli, pretrained: Path, tones: Path, tmp_path: Path) -> None:
    features = "block1+block3+encoder"
    flags = ["--encoder", pretrained, "--out", tmp_path / "set.npz", "--device", "cpu", "--features", features]
    done = cli("embed", tones, *flags)
    assert done.code == 0, done.err
    shards, cpu = open_shards(tones), torch.device("cpu")
    encoder = load_encoder(pretrained, cpu)
    splits = [extract(encoder, shards, name, features, "maxmean", cpu) for name in shards.manifest.splits]
    found = table_of(tmp_path / "set.npz")
    np.testing.assert_allclose(found["embeddings"], torch.cat(splits).numpy(), rtol=1e-4, atol=1e-4)
    assert list(found["path"]) == shards.clips["source"].to_pylist() and found["about"]["features"] == features
    refused(
        cli("embed", tones, *flags[:2], "--out", tmp_path / "b.npz", "--features", "fc"), "features = fc: want layers"
    )


def test_lists_and_archives_and_what_cannot_be_used(
    cli: Cli, pretrained: Path, embedder: Embedder, folder: Path, tmp_path: Path
) -> None:
    paths = sorted(folder.iterdir())
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(paths[0], "inside/a.wav")
    mixed, lists = tmp_path / "mixed", tmp_path / "lists"
    mixed.mkdir()
    lists.mkdir()
    (lists / "list.csv").write_text(f"path\n{paths[1]}\n../mixed/sound.wav\n")
    (mixed / "notes.wav").write_text("no audio")
    soundfile.write(mixed / "short.wav", np.ones(100), 16000)
    soundfile.write(mixed / "scaled.wav", 1e4 * np.ones(16000), 16000, "FLOAT")
    soundfile.write(mixed / "silent.wav", np.zeros(16000), 16000)
    (mixed / "sound.wav").write_bytes(paths[2].read_bytes())
    out = tmp_path / "x.npz"
    given = (tmp_path / "more.tar", lists / "list.csv", mixed, paths[3])
    done = cli("embed", *given, "--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1, "--json")
    assert done.code == 0, done.err
    found = table_of(out)
    used = [*paths[:3], mixed / "silent.wav", *paths[2:4]]
    np.testing.assert_allclose(found["embeddings"], expected(embedder, used), rtol=1e-4, atol=1e-5)
    assert np.isfinite(found["embeddings"]).all()
    names = [f"{tmp_path}/more.tar/inside/a.wav", str(paths[1]), "../mixed/sound.wav"]
    assert list(found["path"]) == [*names, f"{mixed}/silent.wav", f"{mixed}/sound.wav", str(paths[3])]
    lines = (tmp_path / "x.npz.rejected.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "path",
        *(f"{mixed}/{name}.wav" for name in ("notes", "scaled", "short")),
    ]
    assert json.loads(done.out)["rejected"] == {"not audio": 1, "samples out of range": 1, "too short": 1}


@pytest.mark.parametrize("frames", [False, True])
def test_a_recording_of_many_pieces(embedder: Embedder, tmp_path: Path, frames: bool) -> None:
    """250 seconds at 22050 Hz go through the encoder in two pieces, between short ones; a cut one is rejected whole."""
    generator = np.random.default_rng(0)
    wave = 0.1 * generator.standard_normal(250 * 22050)
    soundfile.write(tmp_path / "b.flac", wave, 22050, subtype="PCM_16")
    soundfile.write(tmp_path / "c.wav", wave[:30000], 22050, subtype="PCM_16")
    soundfile.write(tmp_path / "d.wav", wave[:40000], 22050, subtype="PCM_16")
    data = (tmp_path / "b.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 9 // 10])
    rows = rows_of(tmp_path)
    facts = embed_files(embedder, rows, tmp_path / "out.zarr", frames=frames, workers=0)
    assert facts["files"] == 3 and facts["rejected"] == {"truncated or damaged": 1}
    found = table_of(tmp_path / "out.zarr")
    assert [Path(path).name for path in found["path"]] == ["b.flac", "c.wav", "d.wav"]
    for number, path in enumerate(found["path"]):
        stored, rate = soundfile.read(path, dtype="float32")
        if not frames:
            whole = embedder.embed(stored, rate).numpy()
            # 22050 Hz are resampled to 16 bit in `embed`, to float32 in the embedder
            np.testing.assert_allclose(found["embeddings"][number : number + 1], whole, rtol=1e-2, atol=2e-3)
            continue
        steps, times = embedder.embed_frames(stored, rate)
        span = slice(found["first_row"][number], found["first_row"][number] + found["rows"][number])
        np.testing.assert_allclose(found["embeddings"][span], steps[0].numpy(), rtol=1e-2, atol=2e-3)
        np.testing.assert_array_equal(found["timestamp_ms"][span], times[0].numpy())


def test_few_long_files_are_measured_by_their_seconds(
    cli: Cli, pretrained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"files_per_second": 0.1, "times_real_time": 45.2}
    monkeypatch.setattr("unfused_fast.embedding.embed_files", lambda *given, **more: embed_files(*given, **more) | slow)
    file = min(folder.iterdir())
    done = cli("embed", file, "--encoder", pretrained, "--out", tmp_path / "a.csv", "--device", "cpu", "--workers", 1)
    assert f"features by {pretrained}, 45.2 x real time" in " ".join(done.out.split()), done.err


def test_what_is_left_out_is_said(tone_rows: list[SourceRow], tmp_path: Path) -> None:
    """As `shard` says it, but nothing of splits."""
    path, said = tone_rows[0].path, list[str]()
    pack(tone_rows[:3], tmp_path / "in/set", workers=0)
    (tmp_path / "in/train").mkdir()
    (tmp_path / "in/train/a.wav").symlink_to(str(path))
    table = tmp_path / "some.csv"
    table.write_text(f"path,start,end,label,split\n{path},0,1,train,\n")
    assert len(embed_rows([str(tmp_path / "in"), str(table)], said.append)) == 2
    assert said == [
        f"{tmp_path}/in: 1 shard set in it left out, such as {tmp_path}/in/set",
        f"{table}: columns not read: start, end; the columns read are path, label, labels, split, group, fold",
    ]


def test_a_part_of_a_set_and_an_unfinished_one(tone_rows: list[SourceRow], tmp_path: Path) -> None:
    pack(tone_rows, tmp_path / "part", part=(1, 2), workers=0)
    with pytest.raises(UserError, match=r"part: a part of a set; join all parts"):
        rows_of(tmp_path / "part")
    (tmp_path / "part/part.json").unlink()
    (tmp_path / "part").rename(tmp_path / "set.partial")
    with pytest.raises(UserError, match=r"set.partial: unfinished; finish it"):
        rows_of(tmp_path / "set.partial")
