"""`unfused-fast embed`: what is written is what the embedder gives for the same recordings, whatever interrupts it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import zarr
from numpy.typing import NDArray
from outcomes import Cli, refused

import unfused_fast
from unfused_fast.embedding import formats as embed_formats
from unfused_fast.embedding import reading as embed_reading
from unfused_fast.embedding.embedder import Embedder
from unfused_fast.embedding.files import embed_files
from unfused_fast.embedding.parts import EmbeddingParts
from unfused_fast.embedding.sources import embed_rows
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import extract, load_encoder
from unfused_fast.training.options import Interrupted

Table = dict[str, Any]


@pytest.fixture(scope="module")
def embedder(pretrained: Path) -> Embedder:
    return unfused_fast.load(pretrained, device="cpu")


@pytest.fixture(scope="module")
def folder(tone_rows: list[SourceRow]) -> Path:
    assert isinstance(tone_rows[0].path, Path)
    return tone_rows[0].path.parent


def expected(embedder: Embedder, paths: list[Path]) -> NDArray[np.float32]:
    """(N, D) of whole files, one by one."""
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return np.concatenate([embedder.embed(wave, 16000).numpy() for wave in waves])


def rows_of(*given: Path) -> list[SourceRow]:
    return embed_rows([str(path) for path in given], print)


def done_of(out: Path) -> int:
    """Blocks that an unfinished run has saved."""
    return len(list(out.with_name(f"{out.name}.partial").glob("*.json")))


def table_of(out: Path) -> Table:
    """Columns of a file of any format, by the reader of that format."""
    if out.suffix == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            return {**{name: arrays[name] for name in arrays.files}, "about": json.loads(str(arrays["about"]))}
    if out.suffix == ".parquet":
        table = pq.read_table(out)
        columns = {name: table[name].to_numpy() for name in table.schema.names if name != "embedding"}
        about = json.loads(table.schema.metadata[b"about"])
        return {**columns, "embeddings": np.stack(table["embedding"].to_pylist()).astype(np.float32), "about": about}
    if out.suffix.lower() == ".csv":
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        features = [name for name in rows[0] if name.startswith("embedding_")]
        numbers = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0] if name != "path"}
        values = np.stack([numbers.pop(name) for name in features], axis=1)
        return {**numbers, "path": np.array([row["path"] for row in rows]), "embeddings": values, "about": {}}
    group = zarr.open_group(out, mode="r")
    return {**{name: np.asarray(array[:]) for name, array in group.arrays()}, "about": group.attrs["about"]}  # type: ignore[index]


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
    assert [line.split(",")[0] for line in lines] == ["path", f"{mixed}/notes.wav", f"{mixed}/short.wav"]
    assert json.loads(done.out)["rejected"] == {"not audio": 1, "too short": 1}


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


@pytest.mark.parametrize(("ending", "frames"), [("npz", False), ("zarr", False), ("parquet", True), ("zarr", True)])
def test_stopped_at_any_batch_and_gone_on_with(
    embedder: Embedder, folder: Path, tmp_path: Path, ending: str, frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite too: what is replaced stays until the new one is whole. Each chunk of zarr is written once."""
    paths = sorted(folder.iterdir())[:40]
    monkeypatch.setattr(embed_reading, "BLOCK_FILES", 4)
    monkeypatch.setattr(embed_formats, "CHUNK_BYTES", 4 * embedder.scene_embedding_size * 50)
    out, asked, counted = tmp_path / f"x.{ending}", list[int](), list[int]()
    embed_files(embedder, rows_of(paths[0]), out, workers=0, frames=frames)

    def stopping() -> bool:
        asked.append(1)
        return len(asked) % 3 == 0

    with pytest.raises(Interrupted, match="stopped before a file was saved; give the same command again"):
        embed_files(embedder, rows_of(*paths), tmp_path / "none.npz", workers=0, stopping=lambda: True)
    for run in range(99):
        try:
            embed_files(
                embedder,
                rows_of(*paths),
                out,
                workers=0,
                frames=frames,
                resume=run > 0,
                overwrite=True,
                stopping=stopping,
                progress=lambda files, *_: counted.append(files),
            )
            break
        except Interrupted as stopped:
            assert "resume with --resume --overwrite" in str(stopped) and len(set(table_of(out)["path"])) == 1
    assert run > 2 and counted == sorted(set(counted)) and counted[-1] == 40, "nothing is done twice"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, f"{out.name}.rejected.csv"}
    found = table_of(out)
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    made = [embedder.embed_frames(wave, 16000)[0][0] if frames else embedder.embed(wave, 16000) for wave in waves]
    np.testing.assert_allclose(found["embeddings"], np.concatenate(made), rtol=1e-4, atol=1e-5)
    if ending == "zarr":
        chunks = [path for path in (out / "embeddings" / "c").rglob("0") if path.is_file()]
        assert len(chunks) == -(-len(found["embeddings"]) // 50)


def test_ctrl_c_and_a_kill(
    cli: Cli,
    cli_process: Callable[..., subprocess.Popen[str]],
    pretrained: Path,
    embedder: Embedder,
    folder: Path,
    tmp_path: Path,
) -> None:
    """A process is interrupted, then another killed, each after it has saved; a third finishes."""
    out = tmp_path / "x.parquet"
    given = ["embed", *[folder] * 6, "--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1]

    for sent, flags in ((signal.SIGINT, []), (signal.SIGKILL, ["--resume"])):
        before, process = done_of(out), cli_process(*given, *flags)
        while done_of(out) == before and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, sent)
        _, said = process.communicate(timeout=60)
        if sent == signal.SIGINT:
            assert process.returncode == 130 and "--resume" in said, said
    assert not out.exists()
    assert done_of(out)
    done = cli(*given)
    assert done.code == 0 and "files were done; resuming" in done.err, done.err
    whole = expected(embedder, sorted(folder.iterdir()))
    np.testing.assert_allclose(table_of(out)["embeddings"], np.tile(whole, (6, 1)), rtol=1e-4, atol=1e-5)


def test_few_long_files_are_measured_by_their_seconds(
    cli: Cli, pretrained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"files_per_second": 0.1, "times_real_time": 45.2}
    monkeypatch.setattr("unfused_fast.embedding.embed_files", lambda *given, **more: embed_files(*given, **more) | slow)
    file = min(folder.iterdir())
    done = cli("embed", file, "--encoder", pretrained, "--out", tmp_path / "a.csv", "--device", "cpu", "--workers", 1)
    assert f"features by {pretrained}, 45.2 x real time" in " ".join(done.out.split()), done.err


def test_what_an_unfinished_run_left(
    cli: Cli, pretrained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone on with by the same request only, is named where it is damaged, and is no obstacle to --overwrite."""
    monkeypatch.setattr(embed_reading, "BLOCK_FILES", 2)
    out, partial, wave = tmp_path / "x.npz", tmp_path / "x.npz.partial", tmp_path / "a.wav"
    paths = sorted(folder.iterdir())
    flags = ("--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1)
    wave.write_text("no audio")
    refused(cli("embed", wave, *flags), "1 file, none of them usable", "not audio")
    assert not partial.exists() and not out.exists()
    wave.write_bytes(paths[0].read_bytes())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EmbeddingParts, "publish", full)
    done = cli("embed", *paths[:3], *flags)
    refused(done, "No space left on device; free space, then give the same command again")
    monkeypatch.undo()
    for more in ((), ("--resume",)):
        refused(cli("embed", wave, *flags, *more), "unfinished, with different files, sources", "--overwrite")
        refused(cli("embed", *paths[:3], *flags, "--pool", "mean", *more), "unfinished, with different pool")
    done = cli("embed", wave, *flags, "--overwrite")
    assert done.code == 0, done.err
    assert list(table_of(out)["path"]) == [str(wave)] and not partial.exists()
    out.unlink()
    monkeypatch.setattr(embed_reading, "BLOCK_FILES", 2)
    monkeypatch.setattr(EmbeddingParts, "publish", full)
    assert cli("embed", *paths[:3], *flags).code == 1
    monkeypatch.undo()
    rows = partial / "000000000000.rows"
    copied = shutil.copyfile(rows.with_suffix(".json"), partial / "000000000001.json")
    shutil.copyfile(rows, copied.with_suffix(".rows"))
    refused(cli("embed", *paths[:3], *flags), "1.json: cannot be read (the block before it has files up to 2", "delete")
    copied.unlink()
    rows.write_bytes(rows.read_bytes()[:-1])
    refused(cli("embed", *paths[:3], *flags), "json: cannot be read (", "does not have", "delete")
    rows.with_suffix(".json").write_text("{")
    refused(cli("embed", *paths[:3], *flags), "json: cannot be read", "delete")
    for request, files in (([], []), (5, []), ({}, [[5, 1.0, 1]]), ({}, [["a", None, 1]]), ({}, [["a", 1.0, -1]])):
        rows.with_suffix(".json").write_text(json.dumps({"request": request, "files": files}))
        refused(cli("embed", *paths[:3], *flags), "json: cannot be read (not what embed writes)", "delete")
    rows.with_suffix(".json").unlink()
    done = cli("embed", *paths[:3], *flags)
    assert done.code == 0 and "1 files were done" in done.err, "a block that is gone is embedded again"
    assert list(table_of(out)["path"]) == list(map(str, paths[:3])) and not partial.exists()
    (tmp_path / "there.npz").touch()
    nothing = ("--encoder", tmp_path, "--out")  # what is there is refused before an encoder is looked for
    refused(cli("embed", folder, *nothing, tmp_path / "there.npz"), "there.npz: it exists")
    refused(cli("embed", folder, *nothing, tmp_path / "x.txt"), ".npz, .parquet, .zarr or .csv")
    refused(cli("embed", wave, *flags[:3], wave / "x.npz", *flags[4:]), f"{wave}/x.npz: cannot be written (Not a dir")


@pytest.mark.parametrize("name", ["z.zarr", "dd.npz", "foreign.zarr", "x.npz.partial"])
def test_a_folder_that_embed_did_not_write_stays(embedder: Embedder, folder: Path, tmp_path: Path, name: str) -> None:
    """Also one that is made while the files are embedded."""
    mine, rows = tmp_path / name, rows_of(sorted(folder.iterdir())[0])
    out = mine.with_suffix("") if mine.suffix == ".partial" else mine

    def make(*_: object) -> None:
        if name == "foreign.zarr" and not mine.exists():
            zarr.create_group(mine).attrs["about"] = "somebody else's"
        mine.mkdir(exist_ok=True)
        (mine / "precious").write_text("years")

    if out == mine:
        with pytest.raises(UserError, match=f"{name}: a folder that is not an output of embed"):
            embed_files(embedder, rows, out, workers=0, overwrite=True, progress=make)
        assert (mine / "precious").read_text() == "years"
    make()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{name}: (a folder that is not an output|it holds precious)"):
            embed_files(embedder, rows, out, workers=0, overwrite=overwrite)
    assert (mine / "precious").read_text() == "years"


def test_a_part_of_a_set_and_an_unfinished_one(tone_rows: list[SourceRow], tmp_path: Path) -> None:
    pack(tone_rows, tmp_path / "part", part=(1, 2), workers=0)
    with pytest.raises(UserError, match=r"part: a part of a set; join all parts"):
        rows_of(tmp_path / "part")
    (tmp_path / "part/part.json").unlink()
    (tmp_path / "part").rename(tmp_path / "set.partial")
    with pytest.raises(UserError, match=r"set.partial: unfinished; finish it"):
        rows_of(tmp_path / "set.partial")
