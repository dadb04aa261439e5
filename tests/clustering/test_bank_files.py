"""Generations on disk: read by zarr alone, bit for bit; damage and strangers' files are named, full disks and kills."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hostile_runs import in_little_memory, pickled
from outcomes import Cli, contents, refused
from rank_jobs import run_jobs

from unfused_fast.clustering import bank_files
from unfused_fast.clustering.bank_files import DamagedBank, Generation, open_bank, write_generation
from unfused_fast.errors import UserError

ODD = torch.tensor([[-0.0, 0.0, 1e-40, float("nan")], [float("inf"), -float("inf"), 1 / 3, 3.4e38]])
"""What rounding, or a fill value that is not stored, would lose."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of at most 16 rows at D = 4 in float32."""
    monkeypatch.setattr(bank_files, "CHUNK_BYTES", 256)


def written(directory: Path, rows: int = 100, dtype: torch.dtype = torch.float32, epoch: int = 1) -> Path:
    values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
    values[-2:] = ODD[-min(rows, 2) :]
    ids = torch.arange(rows) % 7 - (torch.arange(rows) % 7 > 5).long()
    return write_generation(directory, values.to(dtype), ids, epoch=epoch, step=5, first_clip_id=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 47, 1009])
def test_any_zarr_reads_the_bits(tmp_path: Path, rows: int, dtype: torch.dtype) -> None:
    generation = written(tmp_path, rows, dtype)
    group, read = zarr.open_group(generation, mode="r"), Generation(generation)
    assert group.metadata.zarr_format == 3
    as_numpy, as_torch = (np.uint32, torch.uint32) if dtype == torch.float32 else (np.uint16, torch.uint16)
    ours = read.rows()
    assert ours.dtype == dtype
    assert np.array_equal(group["embeddings"][:].view(as_numpy), ours.view(as_torch).numpy())
    expected = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)).to(dtype)
    assert torch.equal(ours[:-2], expected[:-2])
    assert torch.equal(read.assignments(), torch.from_numpy(group["assignments"][:]))
    assert set(read.verify()) == {None} and read.clip_ids == range(1000, 1000 + rows)
    norms = np.linalg.norm(ours.double().numpy(), axis=1)
    finite, found = norms[np.isfinite(norms)], read.manifest.norms
    assert found["not_finite"] == min(rows, 2)
    if len(finite):
        wanted = finite.min(), finite.mean(), finite.max()
        np.testing.assert_allclose([found["min"], found["mean"], found["max"]], wanted, rtol=1e-6)
    named = {
        str(path.relative_to(generation)): path.stat().st_size for path in generation.rglob("c/**/*") if path.is_file()
    }
    assert dict(read.manifest.files()) == named


def test_every_byte_of_the_rows_is_watched_and_the_rest_still_read(tmp_path: Path) -> None:
    generation = written(tmp_path)
    for file, rows in (
        ("embeddings/c/2/0", "rows 30 to 44 (clips 1030 to 1044)"),
        ("assignments/c/1", "rows 25 to 49"),
    ):
        path = generation / file
        whole = path.read_bytes()
        for at in range(0, len(whole), 13):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            read = Generation(generation)
            (damaged,) = [fact for fact in read.verify() if fact]
            assert f"{path}: {rows}" in damaged and "not as they were written" in damaged
            with pytest.raises(DamagedBank, match=rows.split(" (")[0]):
                read.rows(), read.assignments()
        path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedBank, match=r"assignments/c/1: 203 bytes, but it was written with 204"):
        Generation(generation)
    path.unlink()
    with pytest.raises(DamagedBank, match=r"assignments/c/1: 0 bytes"):
        Generation(generation)


def test_what_is_no_bank_or_epoch(tmp_path: Path) -> None:
    bank = tmp_path / "run/bank.zarr"
    with pytest.raises(UserError, match="holds no memory bank"):
        open_bank(tmp_path)
    written(bank, epoch=3)
    written(bank, epoch=4)
    with pytest.raises(UserError, match="no generation of epoch 2; it has 3, 4"):
        open_bank(tmp_path / "run", 2)
    for path, epoch in (("run", 4), ("run/bank.zarr", 4), ("run/bank.zarr/gen-000003", 3)):
        assert open_bank(tmp_path / path).manifest.epoch == epoch
    (bank / "tmp-abc").mkdir()
    for name in ("gen-000009", "gen-latest", "tmp-abc", "typo", "gen-000003/typo"):
        with pytest.raises(UserError, match=rf"bank.zarr/{name}: it holds no memory bank"):
            open_bank(bank / name)


SMALL_DISK = """
import sys; sys.path[:0] = [sys.argv[2]]
from pathlib import Path
import torch
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.errors import UserError
disk = Path(sys.argv[1])
bank, ids = MemoryBank(20000, 64, 0, torch.device("cpu")), torch.zeros(20000, dtype=torch.int64)
bank.rows.normal_()
bank.snapshot(disk / "bank", 1, ids)()
(disk / "other").write_bytes(bytes(3 * 2**20))
try:
    bank.snapshot(disk / "bank", 2, ids)()
except UserError as error:
    print(error)
other = MemoryBank(20000, 64, 0, torch.device("cpu"))
other.load(disk / "bank", 1)
print(torch.equal(other.rows, bank.rows), [path.name for path in (disk / "bank").iterdir()])
(disk / "other").unlink()
print(bank.snapshot(disk / "bank", 2, ids)().name)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 12 MB in a mount name space of its own, of generations of 5 MB."""
    inside = 'mount -t tmpfs -o size=12m tmpfs "$1" || exit 42; exec "$2" -c "$3" "$1" "$4"'
    arguments = [str(tmp_path), sys.executable, SMALL_DISK, str(Path(__file__).parents[2])]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, "sh", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 42 or "unshare" in done.stderr:
        pytest.skip(f"no mount name space here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    error, state, final = done.stdout.splitlines()
    assert "gen-000002: the memory bank could not be written (No space left on device)" in error
    assert "free space and continue with --resume" in error
    assert state == "True ['gen-000001']" and final == "gen-000002"


@pytest.mark.slow
def test_thirty_kills() -> None:
    """That some kills come in the middle of a save, and that epochs advance, is part of the script's exit code."""
    ((done,),) = run_jobs([{"ranks": 1, "script": ["kill_bank", "--kills", "30", "--seed", "5"]}])
    assert done["code"] == 0 and "30 kills" in done["said"] and "every bank whole" in done["said"], done


def attributes(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: value["attributes"].update(changes)


def chunks(*shape: int) -> Callable[[dict[str, Any]], Any]:
    return lambda value: value["chunk_grid"]["configuration"].update(chunk_shape=list(shape))


STRANGE: dict[str, tuple[str, str | Callable[[dict[str, Any]], Any]]] = {
    "deep": ("zarr.json", "[" * 100_000),
    "no attributes": ("zarr.json", '{"zarr_format": 3, "node_type": "group"}'),
    "no rows": ("zarr.json", attributes(rows=0)),
    "10 ** 15 rows": ("zarr.json", attributes(rows=10**15)),
    "another type": ("zarr.json", attributes(dtype=["object"])),
    "norms of text": ("zarr.json", attributes(norms={"min": "a", "mean": 1, "max": 1, "not_finite": 0})),
    "an epoch elsewhere": ("zarr.json", attributes(epoch="../../x")),
    "one field more": ("zarr.json", attributes(path="/etc/passwd")),
    "deep rows": ("embeddings/zarr.json", '{"a":' * 100_000),
    "a pickle codec": (
        "embeddings/zarr.json",
        lambda value: value.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    ),
    "another shape": ("embeddings/zarr.json", lambda value: value.update(shape=[10**12, 16])),
    "chunks of 10 ** 15 rows": ("assignments/zarr.json", chunks(10**15)),
    "files elsewhere": (
        "embeddings/zarr.json",
        lambda value: value.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
    ),
}


@pytest.fixture
def generation(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newest generation of a finished run, to be spoilt."""
    monkeypatch.undo()
    return Path(shutil.copytree(pretrained, tmp_path / "run")) / "bank.zarr/gen-000002"


def all_refuse(cli: Cli, generation: Path, out: Path) -> None:
    """`bank info`, `bank export` and `clusters` name the generation in one sentence, with little memory."""
    run = generation.parent.parent
    before = contents(run)
    with in_little_memory():
        info = cli("bank", "info", generation, "--verify")
        assert info.code == 1 and "Traceback" not in info.err and "error:" not in info.err, info.err
        assert str(generation) in info.out.replace("\n", "")
        refused(cli("bank", "export", generation, "--out", out), generation)
        refused(cli("clusters", run))
    assert not out.exists() and contents(run) == before


@pytest.mark.parametrize("case", STRANGE)
def test_files_of_a_stranger_are_refused(cli: Cli, generation: Path, tmp_path: Path, case: str) -> None:
    name, change = STRANGE[case]
    if not isinstance(change, str):
        value = json.loads((generation / name).read_text())
        change(value)
        change = json.dumps(value)
    (generation / name).write_text(change)
    all_refuse(cli, generation, tmp_path / "out.npz")


def test_nothing_is_unpickled(cli: Cli, generation: Path, tmp_path: Path) -> None:
    """A zarr v2 array of objects beside the v3 one, and instead of it; objects of numpy as rows."""
    sign, array = tmp_path / "executed", generation / "embeddings"
    about = {
        "zarr_format": 2, "shape": [60, 16], "chunks": [60, 16], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(about))
    (array / "0.0").write_bytes(pickled(sign))
    assert cli("bank", "info", generation, "--verify").code == 0, "what lies beside the array is not read"
    chunk = array / "c/0/0"
    np.save(tmp_path / "objects.npy", np.array([None], object), allow_pickle=True)
    data = (tmp_path / "objects.npy").read_bytes() + pickled(sign)
    chunk.write_bytes(data.ljust(chunk.stat().st_size, b"\0"))
    all_refuse(cli, generation, tmp_path / "out.npz")
    (array / "zarr.json").unlink()
    all_refuse(cli, generation, tmp_path / "out.npz")
    shutil.rmtree(generation)
    generation.symlink_to(tmp_path)
    all_refuse(cli, generation, tmp_path / "out.npz")
    assert not sign.exists()
