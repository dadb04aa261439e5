"""Clips a second of two augmented views: the stream, the resident store and the usual loader (peer.py), on the same
clips, with the same crop, augmentation and cores, in turn within each repeat, so that a ratio compares neighbours in
time. And what a start costs: the first pass over the audio, and a start from the cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from measure import arguments, record, seconds_of
from peer import usual_loader

from unfused_fast.commands.measure.synthetic import noise_files
from unfused_fast.config import Config
from unfused_fast.data import Augmenter, Batches, Loader, placed
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sources.row import SourceRow


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, available_cores()}), help="of torch, ours")
    parser.add_argument("--codec", choices=["wav", "flac"], default="wav")
    given = parser.parse_args()
    device, cores, clips = torch.device(given.device), available_cores(), given.clips
    settings: dict[str, object] = {"clips": clips, "seconds": given.seconds, "batch": given.batch_size}
    settings |= {"codec": given.codec, "load": round(os.getloadavg()[0], 1)}  # more than the cores: others compute too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = noise_files(folder / "source", clips, given.seconds)
        rows = [SourceRow(path, path.name) for path in paths]
        shards = pack(rows, folder / "set", codec=given.codec, statistics=log_mel_statistics).shard_set
        config = Config()
        stream = Loader(shards, "train", config, device=device, batch_size=given.batch_size)
        first, *cached = (clips / seconds_of(partial(placed, stream, "resident"), device) for _ in range(6))
        record("loader", "start: first pass over the audio", "clips/s", [first], device, **settings)
        record("loader", "start: from the cache", "clips/s", cached, device, **settings)
        usual = usual_loader(
            paths, config, mean=stream.mean, std=stream.std, batch_size=given.batch_size, workers=cores
        )
        sources = {"stream": stream, "resident": placed(stream, "resident")}
        runs = {
            (what, threads): partial(augmented_rate, loader, config, threads)
            for what, loader in sources.items()
            for threads in given.threads
        }
        for run in (*runs.values(), partial(usual_rate, usual, device)):
            run()  # page cache, worker processes, first calls
        peer, ours = list[float](), {key: list[float]() for key in runs}
        for _ in range(given.repeats):
            for key, run in runs.items():
                ours[key].append(run())
            peer.append(usual_rate(usual, device))
        two = "crop, log-mel, mixup, random resize crop; 2 views"
        record("loader", f"peer.py: {two}", "clips/s", peer, device, **settings, workers=cores)
        for (what, threads), values in ours.items():
            ratios = [one / other for one, other in zip(values, peer, strict=True)]
            record("loader", f"{what}: {two}", "clips/s", values, device, **settings, threads=threads)
            record("loader", f"{what} / peer.py, same repeat", "ratio", ratios, device, **settings, threads=threads)


def rate(batches: Iterator[int], device: torch.device) -> float:
    """Clips a second of one pass; `batches` gives the size of each."""
    start = time.perf_counter()
    seen = sum(batches)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def augmented_rate(loader: Batches, config: Config, threads: int) -> float:
    """Clips a second of an epoch of augmented views, with so many threads of torch."""
    torch.set_num_threads(threads)
    augment = Augmenter(config, loader.clips, loader.device)

    def sizes() -> Iterator[int]:
        for batch in loader.epoch(1):
            assert batch.draws is not None
            yield len(augment(batch.clip_ids, batch.views, batch.draws)[0])

    return rate(sizes(), loader.device)


def usual_rate(
    usual: torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor, int]], device: torch.device
) -> float:
    """Clips a second of one pass of the usual loader, copied to the device."""
    sizes = (len(first.to(device)) + 0 * len(second.to(device)) for first, second, _ in usual)
    return rate(sizes, device)


if __name__ == "__main__":
    main()
