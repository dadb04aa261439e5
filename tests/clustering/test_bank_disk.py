"""Generations on disk: cut over ranks, read by zarr alone, damage named, headers refused, full disks."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from generations import DIM, content, written

from unfused_fast.clustering import bank_manifest
from unfused_fast.clustering.bank_manifest import DamagedBank, Layout, layout, read_manifest
from unfused_fast.clustering.bank_read import Generation, open_bank
from unfused_fast.clustering.bank_write import create_generation, publish, write_part
from unfused_fast.errors import UserError

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 5, 16, 47, 48, 49, 100, 1009])
def test_any_zarr_reads_what_any_number_of_ranks_wrote(tmp_path: Path, rows: int, ranks: int) -> None:
    generation, (values, ids) = written(tmp_path, rows, ranks), content(rows)
    group = zarr.open_group(generation, mode="r")
    assert group.metadata.zarr_format == 3
    assert np.array_equal(group["embeddings"][:], values) and np.array_equal(group["assignments"][:], ids)
    read = Generation(generation)
    assert np.array_equal(np.concatenate([block.rows for block in read.chunks()]), values)
    assert np.array_equal(np.concatenate([block.assignments for block in read.chunks()]), ids)
    assert list(read.verify()) == [None] * len(read.manifest.chunks) and read.clip_ids == range(1000, 1000 + rows)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    found = read.manifest.norms
    np.testing.assert_allclose([found.min, found.mean, found.max], [norms.min(), norms.mean(), norms.max()], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_even_and_share_no_file(dtype: str) -> None:
    for rows in (1, 2, 15, 16, 17, 100, 1000, 12_345, 99_991):
        for ranks in (1, 2, 3, 8):
            cut = layout(rows, DIM, dtype, ranks)
            parts = [cut.part(rank) for rank in range(ranks)]
            assert parts[0][0] == 0 and parts[-1][1] == rows
            assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
            assert all(first % cut.shard_rows == 0 or first == rows for first, _ in parts)
            assert cut.chunk_rows * cut.row_bytes <= bank_manifest.CHUNK_BYTES
            chunks = -(-rows // cut.chunk_rows)
            assert max(last - first for first, last in parts) <= -(-rows // ranks) + chunks


def test_what_zarr_itself_writes_is_the_same_file(tmp_path: Path) -> None:
    """The oracle of the shard format, byte for byte."""
    generation, (values, _) = written(tmp_path, 100), content(100)
    cut = layout(100, DIM, "float32")
    array = zarr.create_array(
        tmp_path / "oracle",
        shape=values.shape,
        dtype="float32",
        chunks=(cut.chunk_rows, DIM),
        shards=(cut.shard_rows, DIM),
        compressors=None,
    )
    array[:] = values
    ours = {path.name: path for path in (generation / "embeddings/c").iterdir()}
    assert len(ours) == 3
    for name, path in ours.items():
        assert (path / "0").read_bytes() == (tmp_path / "oracle/c" / name / "0").read_bytes()


def test_parts_that_are_not_whole_or_not_there_are_refused(tmp_path: Path) -> None:
    (values, ids), cut = content(100), layout(100, DIM, "float32", 2)
    partial = create_generation(tmp_path, 1, cut)
    assert cut.part(1)[0] % cut.shard_rows == 0 and cut.shard_rows > 1
    for first, last in ((1, cut.shard_rows), (0, cut.shard_rows - 1)):
        with pytest.raises(ValueError, match="whole shards"):
            write_part(partial, cut, first, values[first:last], ids[first:last])
    with pytest.raises(ValueError, match=r"want \(n, 8\) float32"):
        write_part(partial, cut, 0, values.astype(np.float64), ids)
    first, last = cut.part(1)
    write_part(partial, cut, first, values[first:last], ids[first:last])
    with pytest.raises(ValueError, match=r"from rows \[0"):
        publish(partial, cut, epoch=1, step=0, first_clip_id=0)
    assert not (tmp_path / "gen-000001").exists()


@pytest.mark.parametrize("array", ["embeddings", "assignments"])
def test_a_flipped_byte_is_named_and_the_rest_still_read(tmp_path: Path, array: str) -> None:
    generation, cut = written(tmp_path), layout(100, DIM, "float32")
    width = DIM * 4 if array == "embeddings" else 8
    shard = generation / array / ("c/1/0" if array == "embeddings" else "c/1")
    row = cut.shard_rows + 1  # the second row of the second shard
    data = bytearray(shard.read_bytes())
    data[width + 3] ^= 16
    shard.write_bytes(data)
    read = Generation(generation)
    damaged = [fact for fact in read.verify() if fact]
    first, last = row - 1, row - 2 + cut.chunk_rows
    assert damaged == [
        f"{shard}: rows {first} to {last} (clips {1000 + first} to {1000 + last}) do not have the digest they were "
        "written with"
    ]
    with pytest.raises(DamagedBank, match=f"rows {first} to"):
        list(read.chunks())
    assert np.array_equal(read.block(0, first), content(100)[0][:first])


def test_every_byte_of_a_shard_is_watched(tmp_path: Path) -> None:
    """Rows by their digests, the index by its CRC or by what it then points to; what pads the last chunk is no row."""
    generation, cut = written(tmp_path, rows=40), layout(40, DIM, "float32")
    shard = generation / "embeddings/c/0/0"
    whole, padding = shard.read_bytes(), range(40 * DIM * 4, 3 * cut.chunk_rows * DIM * 4)
    assert cut.shard_rows == 3 * cut.chunk_rows
    for at in range(0, len(whole), 13):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert any(Generation(generation).verify()) == (at not in padding), at
    shard.write_bytes(whole)
    assert not any(Generation(generation).verify())


def rehashed(path: Path, **changes: object) -> None:
    """Writes other values into a manifest, and the digest that fits them."""
    value = json.loads(path.read_text()) | changes
    value.pop("digest")
    value["digest"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(value))


def test_manifests_and_headers_that_are_not_as_written(tmp_path: Path) -> None:
    generation = written(tmp_path)
    manifest, header = generation / "manifest.json", generation / "embeddings/zarr.json"
    text, header_text = manifest.read_text(), header.read_text()
    huge = 10**15
    chunk = [{"first_row": 0, "rows": huge, "embeddings": "", "assignments": ""}]
    spoilers = {
        "cannot be read": lambda: manifest.write_bytes(b"\xff{"),
        "cannot be read (maximum": lambda: manifest.write_text("[" * 100_000),
        "no manifest of a memory bank": lambda: manifest.write_text("[]"),
        "digest it was written with": lambda: manifest.write_text(text.replace('"epoch": 1', '"epoch": 2')),
        "format 2, but this program reads": lambda: rehashed(manifest, format=2),
        "chunks do not make up its rows": lambda: rehashed(manifest, rows=101),
        "size of a chunk": lambda: rehashed(manifest, rows=huge, chunks=chunk),
        "but it was written with": lambda: rehashed(
            manifest, rows=huge, chunks=chunk, chunk_rows=huge, shard_rows=huge
        ),
        "this is not a bank manifest": lambda: os.truncate(manifest, 65 * 2**20),
        "zarr.json: it does not have the digest": lambda: header.write_text(header_text.replace("100", "200")),
        "zarr.json: 5,000,000 bytes": lambda: os.truncate(header, 5_000_000),
        "zarr.json: cannot be read (No such file": lambda: header.unlink(),
        "there is no manifest.json": lambda: manifest.unlink(),
    }
    for said, spoil in spoilers.items():
        manifest.write_text(text)
        header.write_text(header_text)
        spoil()
        with pytest.raises(DamagedBank) as raised:
            Generation(generation)
        assert said in str(raised.value) and str(generation) in str(raised.value), (said, raised.value)


def test_arrays_of_another_shape_are_refused_though_their_digests_fit(tmp_path: Path) -> None:
    generation = written(tmp_path)
    header = generation / "embeddings/zarr.json"
    header.write_text(header.read_text().replace("float32", "int32").replace('"fill_value": 0.0', '"fill_value": 0'))
    headers = json.loads((generation / "manifest.json").read_text())["headers"]
    headers["embeddings/zarr.json"] = hashlib.sha256(header.read_bytes()).hexdigest()
    rehashed(generation / "manifest.json", headers=headers)
    with pytest.raises(DamagedBank, match=r"int32 .* but its manifest says \(100, 8\) float32"):
        Generation(generation)


def test_a_million_rows_open_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only manifest and headers are read, then the one chunk that is asked for."""
    monkeypatch.undo()
    cut = layout(1_000_000, 16, "float32")
    values = np.arange(16_000_000, dtype=np.float32).reshape(-1, 16)
    partial = create_generation(tmp_path, 1, cut)
    write_part(partial, cut, 0, values, np.zeros(1_000_000, np.int64))
    publish(partial, cut, epoch=1, step=0, first_clip_id=0)
    before = _bytes_read()
    bank = open_bank(tmp_path)
    assert np.array_equal(bank.block(999_990, 1_000_000), values[-10:])
    assert _bytes_read() - before < 20 * 2**20 < values.nbytes


def _bytes_read() -> int:
    """What this process asked the kernel for, in bytes."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_what_is_no_bank_or_epoch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no memory bank"):
        open_bank(tmp_path)
    written(tmp_path / "run/bank.zarr", epoch=3)
    written(tmp_path / "run/bank.zarr", epoch=4)
    with pytest.raises(UserError, match="no generation of epoch 2; it has 3, 4"):
        open_bank(tmp_path / "run", 2)
    for path, epoch in (("run", 4), ("run/bank.zarr", 4), ("run/bank.zarr/gen-000003", 3)):
        assert open_bank(tmp_path / path).manifest.epoch == epoch


@pytest.mark.parametrize("name", ["gen-000009", "gen-latest", "gen-000003.partial", "typo", "gen-000003/typo"])
def test_a_name_that_is_not_there_never_opens_another_generation(tmp_path: Path, name: str) -> None:
    bank = tmp_path / "run/bank.zarr"
    written(bank, epoch=3)
    with pytest.raises(UserError, match=rf"bank.zarr/{name}: it holds no memory bank"):
        open_bank(bank / name)
    (bank / "gen-000004.partial").mkdir()
    with pytest.raises(UserError, match=r"gen-000004.partial: it holds no memory bank"):
        open_bank(bank / "gen-000004.partial")


SMALL_DISK = """
import sys; sys.path[:0] = [sys.argv[2]]
from pathlib import Path
import torch
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.errors import UserError
disk = Path(sys.argv[1])
bank, ids = MemoryBank(20000, 64, 0, torch.device("cpu")), torch.zeros(20000, dtype=torch.int64)
bank.rows.normal_()
bank.save(disk / "bank", 1, ids)
bank.wait()
(disk / "other").write_bytes(bytes(3 * 2**20))
bank.save(disk / "bank", 2, ids)
try:
    bank.wait()
except UserError as error:
    print(error)
other = MemoryBank(20000, 64, 0, torch.device("cpu"))
other.load(disk / "bank", 1)
print(torch.equal(other.rows, bank.rows), [path.name for path in (disk / "bank").iterdir()])
(disk / "other").unlink()
bank.save(disk / "bank", 2, ids)
print(bank.wait().name)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 12 MB in a mount name space of its own, of generations of 5 MB."""
    inside = 'mount -t tmpfs -o size=12m tmpfs "$1" || exit 42; exec "$2" -c "$3" "$1" "$4"'
    root = Path(__file__).parents[2]
    arguments = [str(tmp_path), sys.executable, SMALL_DISK, str(root)]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, "sh", *arguments],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 42 or "unshare" in done.stderr:
        pytest.skip(f"no mount name space here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    error, state, final = done.stdout.splitlines()
    assert "gen-000002: the memory bank could not be written (No space left on device)" in error
    assert "free space and go on with --resume" in error
    assert state == "True ['gen-000001']" and final == "gen-000002"


def test_bfloat16_bits_are_said_to_be_bfloat16(tmp_path: Path) -> None:
    values = torch.randn(50, DIM).bfloat16()
    cut = layout(50, DIM, "bfloat16")
    partial = create_generation(tmp_path, 1, cut)
    write_part(partial, cut, 0, values.view(torch.int16).numpy().view(np.uint16), np.zeros(50, np.int64))
    generation = publish(partial, cut, epoch=1, step=0, first_clip_id=0)
    array = zarr.open_group(generation, mode="r")["embeddings"]
    assert array.dtype == "uint16" and array.attrs["dtype"] == "bfloat16"
    # bfloat16 is the upper half of float32
    wide = (array[:].astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(wide, values.float()) and Generation(generation).dtype == torch.bfloat16
    assert torch.equal(Generation(generation).block(10, 20), values[10:20])
    norms = read_manifest(generation).norms
    assert norms.max == pytest.approx(float(values.float().norm(dim=1).max()), rel=1e-6)


def test_a_layout_of_nothing_is_refused() -> None:
    for given in ((0, 4, 1), (4, 0, 1), (4, 4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            layout(given[0], given[1], "float32", given[2])
    assert isinstance(layout(1, 1, "float32", 8), Layout)
