"""`unfused-fast embed`, stopped: the same request resumes, another is refused, and no other folder is touched."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import zarr
from embedded import expected, rows_of, table_of
from outcomes import Cli, refused

from unfused_fast.embedding import formats as embed_formats
from unfused_fast.embedding import reading as embed_reading
from unfused_fast.embedding.embedder import Embedder
from unfused_fast.embedding.files import embed_files
from unfused_fast.embedding.parts import EmbeddingParts
from unfused_fast.errors import Interrupted, UserError


def done_of(out: Path) -> int:
    """Blocks that an unfinished run has saved."""
    return len(list(out.with_name(f"{out.name}.partial").glob("*.json")))


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


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

    with pytest.raises(Interrupted, match="stopped before a file was saved; run the same command again"):
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
            assert (
                "run the same command again with --resume --overwrite to continue" in str(stopped)
                and len(set(table_of(out)["path"])) == 1
            )
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
            assert process.returncode == 130 and "saved; run the same command again to continue" in said, said
    assert not out.exists()
    assert done_of(out)
    done = cli(*given)
    assert done.code == 0 and "files done; resuming" in done.err, done.err
    whole = expected(embedder, sorted(folder.iterdir()))
    np.testing.assert_allclose(table_of(out)["embeddings"], np.tile(whole, (6, 1)), rtol=1e-4, atol=1e-5)


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

    monkeypatch.setattr(EmbeddingParts, "publish", full)
    done = cli("embed", *paths[:3], *flags)
    refused(done, "No space left on device; free space, then run the same command again")
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
    assert done.code == 0 and "1 file done; resuming" in done.err, "a block that is gone is embedded again"
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


def test_out_in_the_folder_that_is_embedded(
    cli: Cli, pretrained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no recording, nor is what is next to it; and of a recording that changed nothing is kept."""
    monkeypatch.setattr(embed_reading, "BLOCK_FILES", 2)
    first, second, *_ = sorted(folder.iterdir())
    for name, content in (("a.wav", first.read_bytes()), ("b.wav", b"no audio")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path)
    out = tmp_path / "link" / "x.npz"
    given = ("embed", tmp_path, "--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddingParts, "publish", full)
        assert cli(*given).code == 1 and done_of(out)
    (tmp_path / "b.wav").write_bytes(second.read_bytes())
    refused(cli(*given), "unfinished, with different sizes and times of files; ", "start again with --overwrite")
    (tmp_path / "b.wav").write_bytes(b"no audio")
    for more in ((), ("--overwrite",)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EmbeddingParts, "publish", full)
            assert cli(*given, "--overwrite").code == 1
        done = cli(*given, *more, "--resume")
        assert done.code == 0 and "2 files done; resuming" in done.err, done.err
        assert (tmp_path / "x.npz.rejected.csv").read_text().count("\n") == 2, "the header and b.wav"
