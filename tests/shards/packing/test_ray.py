"""Packing on a Ray cluster of two nodes on this machine, one of which is killed on the way."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_files import bytes_of

from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.packing.ray_engine import _check_reachable
from unfused_fast.shards.sources.source_rows import source_rows

CLIPS = 400


@pytest.fixture(autouse=True)
def _ray() -> None:
    """Imported where a test runs: it takes seconds."""
    pytest.importorskip("ray", reason="comes with the extra ray")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Noise of half a second to a second and a half, some files not finite, one no audio."""
    folder, generator = tmp_path / "noise", np.random.default_rng(0)
    folder.mkdir()
    for number in range(CLIPS):
        noise = generator.standard_normal(int(44100 * generator.uniform(0.5, 1.5))) * 0.1
        soundfile.write(folder / f"{number:03d}.wav", noise * (np.nan if number % 40 == 3 else 1), 44100, "FLOAT")
    (folder / "notes.wav").write_text("no audio")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and one more node, one core each."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.extra = made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.soak
def test_same_bytes_though_a_node_dies(source: Path, cluster: Any, cli_process: Any, tmp_path: Path) -> None:
    from unfused_fast.mel import log_mel_statistics

    pack(source_rows(source), tmp_path / "local", workers=1, statistics=log_mel_statistics)
    running = cli_process("shard", source, tmp_path / "out", "--engine", "ray", "--json", RAY_ADDRESS=cluster.address)
    journal = tmp_path / "out.partial/journal"
    patience = time.monotonic() + 120
    left = list[Path]()  # being made when the node ends, after at least one is done
    while not (left and any(journal.glob("train-*.parquet"))) and running.poll() is None:
        assert time.monotonic() < patience
        time.sleep(0.02)
        left = list(journal.glob("making/*.tar"))
    cluster.remove_node(cluster.extra, allow_graceful=False)
    _, err = running.communicate(timeout=180)
    assert running.returncode == 0, err
    assert left, "the node was killed too late to matter"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "local")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_may_have_a_scheme_or_none(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        _check_reachable(address)
    with pytest.raises(ConnectionRefusedError):
        _check_reachable(address)


def test_no_cluster(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").touch()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = cli("shard", tmp_path, tmp_path / "out", "--engine", "ray")
    assert done.code == 1 and done.error.startswith("no Ray cluster at 127.0.0.1:1")
    assert not (tmp_path / "out").exists()
