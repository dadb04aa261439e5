"""Batches out of memory against the stream's: ids exactly, values to float16; where log-mels lie, and what says so."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import resident_memory
import soundfile
import torch

from unfused_fast.config.audio import Store
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data import store as placement
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.store import choose, placed
from unfused_fast.data.stream import Batches, Loader
from unfused_fast.distributed.shares import Share
from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.memory import Free
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow

Noise = tuple[ShardSet, list[np.ndarray]]
CPU, CLIPS = torch.device("cpu"), 53
NO_MASKS = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}


def stream(shards: ShardSet, values: dict[str, object] | None = None, **options: object) -> Loader:
    return Loader(shards, "train", with_values(Config(), values or {}), **{"device": CPU, "batch_size": 16, **options})


def assert_rounded(found: torch.Tensor, wanted: torch.Tensor, held: Batches) -> None:
    """Equal up to what float16 rounds of a normalised log-mel, 2 ** -11 of it, however it is normalised afterwards;
    and up to 3e-4, by which DALI's own log-mels of a crop and of a whole clip differ.
    """
    assert isinstance(held, ResidentLoader)
    shift = (held.layout.identity["mean"] - held.mean) / held.std
    reach = (wanted - shift).abs()
    if held.config.aug.specaug.warp and len(reach):  # a value is between two that float16 rounds
        reach = reach.amax()
    bound = 2**-11 * reach + 3e-4
    assert found.shape == wanted.shape and bool(((found - wanted).abs() <= bound).all())


@pytest.mark.parametrize(
    ("values", "views", "options"),
    [
        ({"views.same_crop": False}, 2, {}),
        ({"views.same_crop": False, **NO_MASKS}, 3, {"batch_size": 7}),
        ({"data.norm": "none", "data.crop": "start"}, 1, {"batch_size": 64}),
        ({"data.norm": "wave_l2", "frontend.kind": "decar1", "frontend.pad_mode": "constant"}, 2, {}),
        ({"aug.specaug.warp": 20, "views.same_crop": False}, 2, {}),
        ({"data.crop_seconds": 0.5}, 2, {"statistics": {"mean": -3.0, "std": 2.5}}),
    ],
)
def test_crops_masks_and_order_are_the_streams(
    wav_noise: Noise, values: dict[str, object], views: int, options: dict[str, object]
) -> None:
    clusters = np.r_[np.zeros(45, dtype=np.int64), np.full(CLIPS - 45, 2)]
    for rank, world_size, drawn in ((0, 1, None), (1, 2, None), (1, 2, clusters)):
        read = stream(wav_noise[0], values, share=Share(rank, world_size), **options)
        held = placed(read, "resident")
        assert isinstance(held, ResidentLoader) and (held.clips, held.full_batches) == (CLIPS, read.full_batches)
        epochs = (each.epoch(3, views, clusters=drawn) for each in (read, held))
        for wanted, found in zip(*epochs, strict=True):
            assert torch.equal(found.clip_ids, wanted.clip_ids) and torch.equal(found.counters, wanted.counters)
            assert len(found.views) == views
            for one, other in zip(found.views, wanted.views, strict=True):
                assert one.dtype == torch.float32 and one.is_contiguous()
                assert_rounded(one, other, held)
                if not set(NO_MASKS) <= set(values):
                    assert torch.equal(one == 0, other == 0), "the same rectangles are masked"


@pytest.mark.parametrize(("store", "values"), [("resident", {}), ("mmap", {"data.norm": "none"})])
def test_whole_clips_are_the_streams(wav_noise: Noise, store: Store, values: dict[str, object]) -> None:
    for rank in (0, 1):
        read = stream(wav_noise[0], values, batch_size=8, share=Share(rank, 2))
        held = placed(read, store)
        for wanted, found in zip(read.whole_clips(), held.whole_clips(), strict=True):
            assert torch.equal(found.clip_ids, wanted.clip_ids)
            assert torch.equal(found.frame_counts, wanted.frame_counts)
            assert_rounded(found.views[0], wanted.views[0], held)


@pytest.mark.parametrize(("batch_size", "same_crop"), [(7, False), (CLIPS + 1, True)])
def test_batches_copied_ahead_are_those_of_memory(wav_noise: Noise, batch_size: int, same_crop: bool) -> None:
    """What feeds a GPU out of pinned memory, here on a CPU: the staging buffers are filled again while kept batches
    stay what they were.
    """
    read = stream(wav_noise[0], {"views.same_crop": same_crop}, batch_size=batch_size)
    held = placed(read, "resident")
    assert isinstance(held, ResidentLoader)
    ahead = ResidentLoader(read, held.layout, held.frames, "pinned", 0.0)
    pairs = list(zip(held.epoch(3), ahead.epoch(3), strict=True))
    assert len(pairs) == -(-CLIPS // batch_size)
    for wanted, found in pairs:
        assert torch.equal(found.clip_ids, wanted.clip_ids)
        assert all(torch.equal(*views) for views in zip(found.views, wanted.views, strict=True))


def test_loss_curves_agree(cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    losses = {}
    for store in ("stream", "resident", "mmap", "auto"):
        flags = ["--epochs", 2, "--data", store, "--set", "optim.lr=0.1", "--json"]
        done = cli("train", "pretrain", tones, "--out", tmp_path / store, *tiny, *flags)
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (tmp_path / store / "log.jsonl").read_text().splitlines()]
        losses[store] = [row["loss"] for row in rows]
        result = json.loads(done.out)
        assert rows[0]["start_seconds"] == result["start_seconds"] and "start_seconds" not in rows[1]
        assert result["first_epoch_seconds"] == rows[0]["epoch_seconds"]
        assert (result["start_seconds"] > 0) == (store != "stream")
        assert ("auto is resident" in done.err) == (store == "auto")

    same = losses["resident"]
    assert all(losses[store] == same for store in ("mmap", "auto")), "the same float16, wherever it lies"
    np.testing.assert_allclose(losses["resident"], losses["stream"], rtol=2e-3)
    assert cli("check", tones).code == 0, "a cache beside the shards is no damage"


def test_pinned_needs_a_gpu(cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny, "--data", "pinned")
    assert done.code == 1 and "pinned memory feeds a GPU" in done.error and "--data resident" in done.error
    assert not (tmp_path / "run").exists()


GB = 10**9


@pytest.mark.parametrize(
    ("size", "device", "free", "room", "wanted"),
    [
        (30, "cuda", (78, 100), True, "resident"),
        (60, "cuda", (78, 100), True, "pinned"),
        (70, "cuda", (78, 100), True, "pinned"),
        (76, "cuda", (78, 100), True, "mmap"),
        (80, "cuda", (78, 100), False, "stream"),
        (30, "cpu", (0, 100), True, "resident"),
        (80, "cpu", (0, 100), True, "mmap"),
        (80, "cpu", (0, 100), False, "stream"),
    ],
)
def test_auto_goes_by_what_is_free(size: int, device: str, free: tuple[int, int], room: bool, wanted: str) -> None:
    sizes = Free(free[0] * GB, free[1] * GB)
    found, why = choose(size * GB, torch.device(device), sizes, room)
    assert found == wanted and f"{size}.00 GB" in why and f"{free[1]}.00 GB" in why


def test_what_does_not_fit_is_refused(wav_noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: Free(0, 1000))
    with pytest.raises(UserError, match=r"take 0\.\d+ MB, but 0\.00 MB are free in memory; use --data mmap or stream"):
        placed(stream(wav_noise[0]), "resident")
    assert isinstance(placed(stream(wav_noise[0]), "auto"), ResidentLoader), "mapped from disk"


def test_memory_is_that_of_the_log_mels_and_a_tenth(tmp_path: Path) -> None:
    """Clips of a second or less, so that what is kept of each clip weighs most. A fresh process, and the kernel's count
    of its pages.
    """
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 1600), 16000)
    for name, clips in (("small", 20), ("large", 3000)):
        rows = [SourceRow(tmp_path / "clip.wav", f"{number}.wav") for number in range(clips)]
        pack(rows, tmp_path / name, workers=0, statistics=log_mel_statistics)
    placed(stream(open_shards(tmp_path / "large")), "mmap")  # its cache is there
    command = [sys.executable, resident_memory.__file__, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, loaded, peak = map(int, done.stdout.split())
    assert size == 3000 * 96 * 64 * 2 <= max(loaded, peak) <= 1.1 * size


def test_auto_leaves_what_a_step_takes() -> None:
    """On the device, and without one in memory: of 20 GB free, 14 are within the share of 15, but leave 6."""
    for device, free in (("cuda", Free(20 * GB, 100 * GB)), ("cpu", Free(0, 20 * GB))):
        found = [choose(14 * GB, torch.device(device), free, True, step=step * GB)[0] for step in (5, 7)]
        assert found == ["resident", "pinned" if device == "cuda" else "mmap"]
    assert "a step takes about 7.00 GB" in choose(14 * GB, CPU, Free(0, 20 * GB), True, step=7 * GB)[1]


@pytest.mark.gpu
@pytest.mark.parametrize("store", ["resident", "pinned", "mmap"])
def test_gpu_batches_are_the_cpus_without_host_sync(wav_noise: Noise, store: Store) -> None:
    values: dict[str, object] = {"views.same_crop": False}
    wanted = list(placed(stream(wav_noise[0], values), "resident").epoch(2))
    held = placed(stream(wav_noise[0], values, device=torch.device("cuda")), store)
    for _ in range(2):
        batches, found = held.epoch(2), []
        found.append(next(batches))  # what an epoch draws is uploaded here
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += batches
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(found, wanted, strict=True):
            assert one.clip_ids.tolist() == other.clip_ids.tolist()
            for view, expected in zip(one.views, other.views, strict=True):
                assert view.is_cuda
                assert_rounded(view.cpu(), expected, held)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole = list(held.whole_clips())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(whole, placed(stream(wav_noise[0], values), "resident").whole_clips(), strict=True):
        assert_rounded(one.views[0].cpu(), other.views[0], held)
