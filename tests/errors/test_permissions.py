"""Files have the permissions that the umask leaves, and a missing right is called one, not damage."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import Cli, refused
from permissions import mode

from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training import checkpoint


def modes(folder: Path) -> dict[str, str]:
    """Files and folders that have other permissions than a new one gets here."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        str(path): oct(found)
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink()
        and (found := stat.S_IMODE(path.stat().st_mode)) != (0o777 if path.is_dir() else 0o666) & ~umask
    }


def test_permissions_are_what_the_umask_leaves(
    cli: Cli, pretrained: Path, tones: Path, unlabelled: Path, tone_files: Path, tmp_path: Path
) -> None:
    """Of shard sets, runs, model folders, and of what each command writes."""
    assert modes(tones) == modes(unlabelled) == modes(pretrained) == {}
    out = tmp_path / "out"
    for command in (
        ("export", pretrained, "--hub", out / "hub", "--torch-export", out / "encoder.pt2"),
        *(("embed", tone_files, "--encoder", pretrained, "--out", out / f"e.{kind}") for kind in ("npz", "zarr")),
        *(("bank", "export", pretrained, "--out", out / f"bank.{kind}") for kind in ("npz", "parquet")),
        ("peek", tones, "--out", out / "peek.png", "--play-to", out / "clips"),
    ):
        done = cli(*command)
        assert done.code == 0, done.err
    assert modes(out) == {}


@pytest.fixture(scope="module")
def tone_files(tone_rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for row in tone_rows[:4]:
        assert isinstance(row.path, Path)
        (folder / row.path.name).write_bytes(row.path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("run", name) for name in (".", "config.json", "checkpoints")),
        *(("run", f"checkpoints/epoch-000002.{ending}") for ending in ("json", "safetensors")),
        *(("hub", name) for name in (".", "config.json", "model.safetensors")),
        *(("set", name) for name in ("manifest.json", "clips.parquet", "train-*0.idx")),
    ],
)
def test_what_may_not_be_read(
    cli: Cli,
    copy_of: Callable[[Path], Path],
    pretrained: Path,
    tones: Path,
    tone_files: Path,
    tmp_path: Path,
    kind: str,
    name: str,
) -> None:
    whole = tmp_path / "hub" if kind == "hub" else copy_of(tones if kind == "set" else pretrained)
    if kind == "hub":
        assert cli("export", pretrained, "--hub", whole).code == 0
    (path,) = [whole] if name == "." else whole.glob(name)
    with mode(path, 0):
        if kind == "set":
            done = cli("peek", whole, "--out", tmp_path / "peek.png")
        else:
            done = cli("embed", tone_files, "--encoder", whole, "--out", tmp_path / "e.npz", "--workers", 1)
    refused(done, path, "Permission denied", "permission to read")
    assert "again" not in done.error and "damaged" not in done.err


@pytest.mark.parametrize("command", ["embed", "hub", "torch-export", "bank", "peek", "clips", "shard", "pretrain"])
def test_a_place_that_may_not_be_written(
    cli: Cli, pretrained: Path, tones: Path, tone_files: Path, tmp_path: Path, tiny: list[str], command: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    commands: dict[str, tuple[object, ...]] = {
        "embed": ("embed", tone_files, "--encoder", pretrained, "--out", closed / "e.npz"),
        "hub": ("export", pretrained, "--hub", closed / "hub"),
        "torch-export": ("export", pretrained, "--torch-export", closed / "encoder.pt2"),
        "bank": ("bank", "export", pretrained, "--out", closed / "bank.npz"),
        "peek": ("peek", tones, "--out", closed / "peek.png"),
        "clips": ("peek", tones, "--out", tmp_path / "peek.png", "--play-to", closed / "clips"),
        "shard": ("shard", tone_files, closed / "set"),
        "pretrain": ("train", "pretrain", tones, "--out", closed / "run", "--epochs", 1, *tiny),
    }
    with mode(closed, 0o555):
        done = cli(*commands[command])
    refused(done, closed, "Permission denied")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_what_the_disk_refuses_is_said_in_the_systems_words(
    cli: Cli, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    said = f"({os.strerror(number)})"

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "save_file", full)
    refused(cli("export", pretrained, "--hub", tmp_path / "hub"), tmp_path / "hub", said)
    monkeypatch.setattr(Path, "write_bytes", full)
    refused(cli("export", pretrained, "--torch-export", tmp_path / "encoder.pt2"), "encoder.pt2", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR])
def test_an_error_of_the_system_that_no_command_expects(
    cli: Cli, pretrained: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/a/file")

    monkeypatch.setattr("unfused_fast.evaluation.collect_results", failing)
    refused(cli("report", pretrained), f"/a/file: {os.strerror(number)}; ")
