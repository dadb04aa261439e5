"""The DALI graph against librosa and the torch reference; exact cover of an epoch on any number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import soundfile
import torch

from unfused_fast.config.audio import Store
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.distributed.shares import Share
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow

CPU = torch.device("cpu")
CLIPS = 53
NO_MASKS = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
SIX: dict[str, object] = {"data.partitions": 6}
"""Which two and three ranks share."""


Noise = tuple[ShardSet, list[np.ndarray]]
Librosas = Callable[..., np.ndarray]
Engine = Literal["dali", "torch", "libsndfile"]
ENGINES = pytest.mark.parametrize("engine", ["dali", "torch"])


WAVE_L2: dict[str, object] = {"data.norm": "wave_l2"}
BOTH: tuple[Engine, Engine] = "dali", "libsndfile"
START: dict[str, object] = {"data.crop": "start"}
FRONT_ENDS = [{}, {"frontend.kind": "decar1", "frontend.pad_mode": "constant"}]


def loader(
    shards: ShardSet, values: dict[str, object], engine: Engine = "torch", batch_size: int = 16, **options: Any
) -> Loader:
    """Of the train split on the CPU, where `engine` computes the log-mels; libsndfile decodes for torch."""
    made = Loader(shards, "train", with_values(Config(), values), device=CPU, batch_size=batch_size, **options)
    made.in_dali, made.log_mel = engine != "libsndfile", "dali" if engine == "dali" else "torch"
    return made


@pytest.mark.parametrize("engine", get_args(Engine))
@pytest.mark.parametrize("values", FRONT_ENDS)
def test_whole_clips_are_librosas_log_mel(
    noise: Noise, engine: Engine, values: dict[str, object], librosas: Librosas, padded: Callable[..., np.ndarray]
) -> None:
    shards, waveforms = noise
    stream, seen = loader(shards, {"data.norm": "none", **values}, engine, 8), []
    config = stream.config
    for batch in stream.whole_clips():
        ids, counts = batch.clip_ids.tolist(), batch.frame_counts.tolist()
        for clip, found, frames in zip(ids, batch.views[0][:, 0], counts, strict=True):
            expected = librosas(padded(waveforms[clip], config), config.frontend.kind, config.frontend.pad_mode)
            assert frames == expected.shape[1]
            np.testing.assert_allclose(found[:, :frames].numpy(), expected, atol=2e-4)
            assert not found[:, frames:].any()
            seen.append(clip)
    assert sorted(seen) == list(range(CLIPS))


@pytest.mark.parametrize(
    ("values", "rank", "only"), [*((values, 0, None) for values in FRONT_ENDS), (WAVE_L2, 1, [3, 30, 41])]
)
def test_libsndfile_gives_the_log_mels_of_dali(
    noise: Noise, values: dict[str, object], rank: int, only: list[int] | None
) -> None:
    chosen = {"share": Share(rank, 1 + rank), "only": None if only is None else np.array(only)}
    by_dali, by_libsndfile = (list(loader(noise[0], values, engine, 7, **chosen).whole_clips()) for engine in BOTH)
    assert sum(len(batch.clip_ids) for batch in by_dali) == (CLIPS if only is None else 2)
    for wanted, found in zip(by_dali, by_libsndfile, strict=True):
        assert torch.equal(found.clip_ids, wanted.clip_ids)
        assert torch.equal(found.frame_counts, wanted.frame_counts)
        torch.testing.assert_close(found.views[0], wanted.views[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("engine", "values"),
    [*((engine, values) for engine in ("dali", "torch") for values in FRONT_ENDS), ("torch", WAVE_L2), ("dali", START)],
)
def test_crops_are_frames_of_the_whole_clips_log_mel(
    noise: Noise, engine: Engine, values: dict[str, object], librosas: Librosas, padded: Callable[..., np.ndarray]
) -> None:
    shards, waveforms = noise
    stream = loader(shards, {"data.norm": "none", **NO_MASKS, **values}, engine, 7)
    config = stream.config
    starts = []
    for batch in stream.epoch(3):
        assert torch.equal(*batch.views), "one crop serves both views"
        for clip, crop in zip(batch.clip_ids.tolist(), batch.views[0][:, 0], strict=True):
            wave = waveforms[clip]
            if config.data.norm == "wave_l2":
                wave = wave / max(float(np.linalg.norm(wave.astype(np.float64))), 1 / 32768)
            whole = librosas(padded(wave, config), config.frontend.kind, config.frontend.pad_mode)
            distances = (torch.from_numpy(whole).unfold(1, 96, 1).permute(1, 0, 2) - crop).abs().amax(dim=(1, 2))
            assert distances.min() < 3e-4
            starts.append(int(distances.argmin()))
    assert len(starts) == CLIPS
    assert set(starts) == {0} if config.data.crop == "start" else 0 in starts and len(set(starts)) > 10


@ENGINES
def test_normalisation_is_that_of_the_set(wav_noise: Noise, engine: Engine) -> None:
    plain = loader(wav_noise[0], {"data.norm": "none", **NO_MASKS}, engine)
    normal = loader(wav_noise[0], NO_MASKS, engine, statistics={"mean": -3.0, "std": 2.5})
    for raw, scaled in zip(plain.epoch(1), normal.epoch(1), strict=True):
        torch.testing.assert_close(scaled.views[0], (raw.views[0] + 3.0) / 2.5, atol=1e-5, rtol=0)


def test_a_batch_of_fewer_clips_than_ranks_is_refused(wav_noise: Noise) -> None:
    with pytest.raises(UserError, match="a batch of 3 clips is fewer than the 4 processes that share it"):
        loader(wav_noise[0], {}, batch_size=3, share=Share(1, 4))


def test_the_order_is_that_of_the_seed(wav_noise: Noise) -> None:
    """Of every epoch: test_order.py."""
    first = [next(loader(wav_noise[0], {"train.seed": seed}).epoch(1)).clip_ids.tolist() for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("store", ["stream", "resident"])
def test_views_are_a_function_of_the_clip_not_of_batch_size_or_rank(wav_noise: Noise, store: Store) -> None:
    def views(batch_size: int, world_size: int) -> dict[int, torch.Tensor]:
        found = {}
        for rank in range(world_size):
            own = loader(wav_noise[0], SIX, batch_size=batch_size, share=Share(rank, world_size))
            for batch in placed(own, store).epoch(5):
                found.update(zip(batch.clip_ids.tolist(), torch.stack(batch.views, dim=1), strict=True))
        return found

    one, other = views(16, 1), views(9, 3)
    assert one.keys() == other.keys() == set(range(CLIPS))
    assert all(torch.equal(one[clip], other[clip]) for clip in one)


def test_specaugment_masks_rows_and_columns_with_the_mean(wav_noise: Noise) -> None:
    masked = loader(wav_noise[0], {"aug.specaug.freq_masks": 2, "aug.specaug.time_masks": 1})
    plain = loader(wav_noise[0], NO_MASKS)
    frequency, time, differ = [], [], 0
    for with_masks, without in zip(masked.epoch(1), plain.epoch(1), strict=True):
        first, second = with_masks.views
        differ += int((first != second).flatten(1).any(dim=1).sum())
        changed = (first != without.views[0])[:, 0]
        assert not first[:, 0][changed].any(), "a mask holds zeros: the set's mean after normalisation"
        rows, columns = changed.all(dim=2), changed.all(dim=1)
        assert torch.equal(changed, rows[:, :, None] | columns[:, None, :]), "masks are whole rows and columns"
        frequency += rows.sum(dim=1).tolist()
        time += columns.sum(dim=1).tolist()
    assert max(frequency) <= 2 * 8 and max(time) <= 12 and max(frequency) > 8 and max(time) > 6
    assert differ > CLIPS // 2, "each view has masks of its own"


def test_batches_stay_valid_after_the_pipeline_moves_on(wav_noise: Noise) -> None:
    kept = [(batch.views[0], batch.views[0].clone()) for batch in loader(wav_noise[0], {}, batch_size=4).epoch(1)]
    assert all(torch.equal(now, then) for now, then in kept)


@ENGINES
def test_the_part_of_a_wav_that_is_read_gives_what_the_whole_flac_gives(tmp_path: Path, engine: Engine) -> None:
    """With two crops a clip, in a folder whose name has spaces and umlauts."""
    generator = np.random.default_rng(0)
    for clip in range(20):
        waveform = generator.standard_normal(generator.integers(4800, 48000)) * 0.1
        soundfile.write(tmp_path / f"{clip:03d}.wav", waveform, 16000)
    rows = [SourceRow(path, path.name) for path in sorted(tmp_path.glob("*.wav"))]
    values: dict[str, object] = {"views.same_crop": False, "data.norm": "none", **NO_MASKS}
    out = tmp_path / "Töne und Klänge"
    sets = [pack(rows, out / codec, codec=codec, workers=0).shard_set for codec in ("wav", "flac")]
    apart = 0
    for wav, flac in zip(*(loader(one, values, engine).epoch(2) for one in sets), strict=True):
        assert torch.equal(wav.clip_ids, flac.clip_ids)
        assert all(torch.equal(*views) for views in zip(wav.views, flac.views, strict=True))
        apart += int((wav.views[0] != wav.views[1]).flatten(1).any(dim=1).sum())
    assert apart > 10, "each view of a long clip has a crop of its own"


def test_a_wav_shorter_than_the_table_says_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(20000) * 0.1, 16000)
    shards = pack([SourceRow(tmp_path / "a.wav", "a.wav")], tmp_path / "set", workers=0).shard_set
    read = loader(shards, {"data.crop": "start"}, batch_size=4)
    read.index = read.index._replace(lines=list(map(_shortened, read.index.lines)))
    with pytest.raises(UserError, match=r"train-000000.tar: .*wav has 5000 bytes, but the clips table needs at least"):
        next(read.epoch(1))


def _shortened(text: str) -> str:
    others, offset, _, name = text.rsplit(" ", 3)
    return f"{others} {offset} 5000 {name}"


@pytest.mark.gpu
@pytest.mark.parametrize("whole", [False, True])
def test_gpu_graph_is_the_cpu_graph_without_host_sync(noise: Noise, whole: bool) -> None:
    """Each batch is read late, when it has been dropped and DALI has made the next ones."""
    made = []
    for device in (CPU, torch.device("cuda")):
        loader = Loader(noise[0], "train", with_values(Config(), NO_MASKS), device=device, batch_size=4)
        torch.cuda.set_sync_debug_mode("default" if device == CPU else "error")
        found = []
        try:
            for batch in loader.whole_clips() if whole else loader.epoch(1):
                if device != CPU:
                    torch.cuda._sleep(100_000_000)  # the stream is busy for a twentieth of a second
                    assert batch.views[0].is_cuda
                found.append((batch.clip_ids.clone(), batch.views[0].clone()))
                del batch
        finally:
            torch.cuda.set_sync_debug_mode("default")
        made.append(found)
    for (ids, values), (gpu_ids, gpu_values) in zip(*made, strict=True):
        assert torch.equal(gpu_ids.cpu(), ids)
        torch.testing.assert_close(gpu_values.cpu(), values, atol=1e-4, rtol=0)
