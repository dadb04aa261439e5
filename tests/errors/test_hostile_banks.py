"""Memory banks of a stranger, whose digests hold: one sentence, exit code 1, nothing executed, little memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_runs import in_little_memory, pickled, rewritten, with_header
from outcomes import Cli, contents, refused

DEEP = 100_000
EMBEDDINGS, ASSIGNMENTS = "embeddings/zarr.json", "assignments/zarr.json"


@pytest.fixture
def generation(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """The newest generation of a finished run, to be spoilt."""
    return copy_of(pretrained) / "bank.zarr/gen-000002"


def all_refuse(cli: Cli, generation: Path, tmp_path: Path, *parts: object) -> None:
    """`bank info`, `bank export` and `clusters` name what is wrong, and write nothing."""
    out = tmp_path / "out.npz"
    before = contents(generation.parent.parent)
    with in_little_memory():
        info = cli("bank", "info", generation, "--verify")
        assert info.code == 1 and "Traceback" not in info.err and "error:" not in info.err, info.err
        assert all(str(part) in info.out.replace("\n", "") for part in parts), info.out
        refused(cli("bank", "export", generation, "--out", out), *parts)
        refused(cli("clusters", generation.parent.parent))
    assert not out.exists() and contents(generation.parent.parent) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "NaN", "[" * DEEP, '{"a":' * DEEP, '{"rows": ' + "9" * 5000 + "}", "\x00"]
)
def test_manifests_that_are_none(cli: Cli, generation: Path, tmp_path: Path, text: str) -> None:
    (generation / "manifest.json").write_text(text)
    all_refuse(cli, generation, tmp_path, generation / "manifest.json")


def chunk(manifest: dict[str, Any], **changes: Any) -> None:
    manifest["chunks"][0].update(changes)


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rows of text": lambda value: value.update(rows="60"),
    "rows of half": lambda value: (value.update(rows=60.5), chunk(value, rows=60.5))[0],
    "truth for rows": lambda value: (value.update(rows=True), chunk(value, rows=True))[0],
    "no rows": lambda value: value.update(rows=0, chunks=[]),
    "fewer than no rows": lambda value: (value.update(rows=-60), chunk(value, rows=-60))[0],
    "10 ** 30 rows": lambda value: (
        value.update(rows=10**30, chunk_rows=10**30, shard_rows=10**30),
        chunk(value, rows=10**30),
    )[0],
    "10 ** 12 rows in one chunk": lambda value: (
        value.update(rows=10**12, chunk_rows=10**12, shard_rows=10**12),
        chunk(value, rows=10**12),
    )[0],
    "a width of text": lambda value: value.update(dim="16"),
    "a width of 10 ** 18": lambda value: value.update(dim=10**18),
    "a width of half": lambda value: value.update(dim=16.5),
    "chunks of no rows": lambda value: value.update(chunk_rows=0),
    "chunks of less than no rows": lambda value: value.update(chunk_rows=-60, shard_rows=-60),
    "shards of no rows": lambda value: value.update(shard_rows=0),
    "chunks of text": lambda value: value.update(chunk_rows="60"),
    "a chunk elsewhere": lambda value: chunk(value, first_row=7),
    "a chunk of text": lambda value: value.update(chunks=["all"]),
    "chunks that are a number": lambda value: value.update(chunks=7),
    "digests that are numbers": lambda value: chunk(value, embeddings=7, assignments=None),
    "another type": lambda value: value.update(dtype="object"),
    "types as a list": lambda value: value.update(dtype=["float32"]),
    "headers elsewhere": lambda value: value.update(headers={"../../config.json": "0" * 64}),
    "headers that are a list": lambda value: value.update(headers=["zarr.json"]),
    "a header's digest as a number": lambda value: value["headers"].update({EMBEDDINGS: 7}),
    "norms of text": lambda value: value["norms"].update(min="small"),
    "norms that are a list": lambda value: value.update(norms=[1, 2]),
    "clips of text": lambda value: value.update(first_clip_id="../../x"),
    "clips before the first": lambda value: value.update(first_clip_id=-5),
    "an epoch elsewhere": lambda value: value.update(epoch="../../x"),
    "a step of text": lambda value: value.update(step="many"),
    "one field more": lambda value: value.update(path="/etc/passwd"),
    "one field less": lambda value: value.pop("step") and None,
    "another format": lambda value: value.update(format=[1]),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_of_something_else(cli: Cli, generation: Path, tmp_path: Path, case: str) -> None:
    rewritten(generation, MANIFESTS[case])
    all_refuse(cli, generation, tmp_path, generation)


def bomb_codec(value: dict[str, Any]) -> None:
    inner = value["codecs"][0]["configuration"]["codecs"]
    inner.append({"name": "zstd", "configuration": {"level": 0, "checksum": False}})


HEADERS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "compressed rows": (EMBEDDINGS, bomb_codec),
    "compressed assignments": (ASSIGNMENTS, bomb_codec),
    "not sharded": (
        EMBEDDINGS,
        lambda value: value.update(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}]),
    ),
    "the other byte order": (
        EMBEDDINGS,
        lambda value: value["codecs"][0]["configuration"]["codecs"][0]["configuration"].update(endian="big"),
    ),
    "a codec nobody knows": (EMBEDDINGS, lambda value: value.update(codecs=[{"name": "execute", "configuration": {}}])),
    "a pickle codec": (
        EMBEDDINGS,
        lambda value: value.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    ),
    "another shape": (EMBEDDINGS, lambda value: value.update(shape=[10**12, 16])),
    "a shape of three axes": (EMBEDDINGS, lambda value: value.update(shape=[60, 4, 4])),
    "other chunks": (
        EMBEDDINGS,
        lambda value: value["codecs"][0]["configuration"].update(chunk_shape=[1, 1]),
    ),
    "chunks of 10 ** 15 rows": (
        ASSIGNMENTS,
        lambda value: value["chunk_grid"]["configuration"].update(chunk_shape=[10**15]),
    ),
    "another type": (EMBEDDINGS, lambda value: value.update(data_type="float64")),
    "text for numbers": (EMBEDDINGS, lambda value: value.update(data_type="string")),
    "a list": (EMBEDDINGS, lambda value: [1]),
    "a group": (EMBEDDINGS, lambda value: {"zarr_format": 3, "node_type": "group", "attributes": {}}),
    "another format": ("zarr.json", lambda value: value.update(zarr_format=2)),
    "an array for the group": ("zarr.json", lambda value: value.update(node_type="array")),
    "files elsewhere": (
        EMBEDDINGS,
        lambda value: value.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_something_else(cli: Cli, generation: Path, tmp_path: Path, case: str) -> None:
    with_header(generation, *HEADERS[case])
    all_refuse(cli, generation, tmp_path, generation)


@pytest.mark.parametrize("text", ["", "7", "NaN", "[" * DEEP, '{"a":' * DEEP, "\x00"])
def test_headers_that_are_none(cli: Cli, generation: Path, tmp_path: Path, text: str) -> None:
    (generation / EMBEDDINGS).write_text(text)
    digest = hashlib.sha256((generation / EMBEDDINGS).read_bytes()).hexdigest()
    rewritten(generation, lambda value: value["headers"].update({EMBEDDINGS: digest}))
    all_refuse(cli, generation, tmp_path, generation)


def test_an_array_of_pickled_objects_is_not_opened(cli: Cli, generation: Path, tmp_path: Path) -> None:
    """A zarr v2 array of objects beside the v3 one, and instead of it: zarr would unpickle its chunks."""
    sign, array = tmp_path / "executed", generation / "embeddings"
    about = {
        "zarr_format": 2, "shape": [60, 16], "chunks": [60, 16], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(about))
    (array / "0.0").write_bytes(pickled(sign))
    done = cli("bank", "info", generation, "--verify")
    assert done.code == 0 and not sign.exists(), "what lies beside the array is not read"
    (array / "zarr.json").unlink()
    all_refuse(cli, generation, tmp_path, array / "zarr.json")
    assert not sign.exists()


def test_numpy_objects_are_not_unpickled(cli: Cli, generation: Path, tmp_path: Path) -> None:
    sign, shard = tmp_path / "executed", generation / "embeddings/c/0/0"
    size = shard.stat().st_size
    np.save(tmp_path / "objects.npy", np.array([None], object), allow_pickle=True)
    shard.write_bytes(((tmp_path / "objects.npy").read_bytes() + pickled(sign)).ljust(size, b"\0")[:size])
    all_refuse(cli, generation, tmp_path, shard)
    assert not sign.exists()


def test_a_generation_that_is_a_link_out_of_its_bank_is_judged_by_what_it_holds(
    cli: Cli, generation: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(generation)
    generation.symlink_to(elsewhere)
    all_refuse(cli, generation, tmp_path, generation)
    assert list(elsewhere.iterdir()) == []
