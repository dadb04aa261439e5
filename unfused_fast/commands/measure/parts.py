"""`unfused-fast bench`: how fast each part runs here, and how far that is from what this machine could do.

B clips in a batch, N clips, D features, K clusters. A floor is what the part would take if nothing but the work that
cannot be left out were done at the rates measured here: bytes at the copy rate, products at the matmul rate.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from unfused_fast.clustering import MemoryBank, resolve_backend, spherical_kmeans
from unfused_fast.commands.measure import machine
from unfused_fast.commands.measure.machine import spread
from unfused_fast.config import Config, with_values
from unfused_fast.console import console, counted
from unfused_fast.data import Augmenter, Batches, Loader, ResidentLoader, draws_of, log_mel_cache, placed
from unfused_fast.distributed import ALONE
from unfused_fast.kernels.views import augmented_reference
from unfused_fast.memory import freed_memory_kept
from unfused_fast.methods import Method, method_class
from unfused_fast.optional import present
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import (
    Options,
    autocast,
    build_optimizer,
    compiled,
    full_precision,
    prepare_for,
    quietly,
    resolve_amp,
)


class Measured(NamedTuple):
    """One line of the table."""

    part: str
    what: str
    unit: str
    """`clips/s` and the like, of which more is better, or `ms`, of which less is."""
    values: list[float]
    floor: float | None = None
    """What this machine could do, in the same unit."""
    floor_is: str = ""

    @property
    def share(self) -> float | None:
        """How much of the floor's speed is reached, by the median; 1 is all of it."""
        if self.floor is None:
            return None
        median = spread(self.values).p50
        return self.floor / median if self.unit == "ms" else median / self.floor

    def as_json(self, **circumstances: object) -> dict[str, object]:
        """A row: the figures and what they mean nothing without."""
        quantiles = {name: float(f"{value:.5g}") for name, value in spread(self.values)._asdict().items()}
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            **quantiles,
            "repeats": len(self.values),
            "floor": None if self.floor is None else float(f"{self.floor:.5g}"),
            "floor_is": self.floor_is,
            "share": None if self.share is None else round(self.share, 4),
            **circumstances,
        }


@dataclass
class Bench:
    """What all parts measure on: a set, a config, a device."""

    shards: ShardSet
    config: Config
    options: Options
    quick: bool = False

    def __post_init__(self) -> None:
        self.device = self.options.device
        self.clips = self.shards.manifest.splits["train"].clips
        wanted = self.config.train.batch_size
        self.batch_size = min(self.clips, 64 if self.device.type == "cpu" else 512) if wanted == "auto" else wanted
        self.repeats = 3 if self.quick else 7
        self.amp = resolve_amp(self.config, self.device)

    @cached_property
    def method(self) -> Method:
        """The method in its second epoch, from which on all its parts work; the rows of a bank are noise, clustered in
        one iteration. Raises UserError where it does not fit the set.
        """
        config = replace(self.config, cluster=replace(self.config.cluster, iterations=1, n_init=1))

        def every_clip(augmented: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for ids in torch.split(torch.arange(self.clips, device=self.device), self.batch_size):
                ALONE.batch([len(ids)])
                yield ids, torch.randn(len(ids), config.model.proj_dim, device=self.device)

        torch.manual_seed(0)
        with quietly():
            method = method_class(config)(config, self.clips, 0, self.device, ALONE)
            prepare_for(method, self.device).train()
            method.run = lambda rows, **_: normalize(rows, dim=1)
            method.begin_epoch(2, every_clip)
        return method

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second."""
        return machine.copy_rate(self.device)

    @cached_property
    def matmul_rate(self) -> float:
        """Operations a second in the precision of training."""
        return machine.matmul_rate(self.device, torch.bfloat16 if self.amp else torch.float32)

    def seconds(self, run: Callable[[], object]) -> list[float]:
        """Of repeated calls, after one that does not count."""
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        return [float(one) for one in timer.blocked_autorange(min_run_time=0.5 if self.quick else 2.0).times]

    def rates(self, run: Callable[[], object]) -> list[float]:
        """Clips a second of repeated calls, of which each takes one batch."""
        return [self.batch_size / seconds for seconds in self.seconds(run)]

    def crop(self) -> torch.Tensor:
        """(B, 1, F, T) of noise."""
        shape = self.batch_size, 1, self.config.frontend.n_mels, self.config.crop_frames
        return torch.randn(shape, device=self.device)


def loader(bench: Bench) -> Iterator[Measured]:
    """Decoded, cropped, masked views without mixup and resize crop, as many as a training step has: streaming, and from
    where data.store keeps them; and the one pass over whole clips that puts them there.
    """
    stream = Loader(bench.shards, "train", bench.config, device=bench.device, batch_size=bench.batch_size)
    made = counted(bench.method.views, "view")

    def rates(batches: Batches, seconds: float) -> list[float]:
        found, epoch = list[float](), 0
        while len(found) < bench.repeats:
            done, start = 0, time.perf_counter()
            for batch in batches.epoch(epoch, views=bench.method.views):
                done += len(batch.clip_ids)
                if time.perf_counter() - start > seconds:
                    break
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            found.append(done / (time.perf_counter() - start))
            epoch += 1
        return found

    limit = 2.0 if bench.quick else 8.0
    decode = machine.decode_rate(bench.shards, 256 if bench.quick else 1024)
    if present("nvidia.dali"):
        streamed = rates(stream, limit)
        yield Measured("loader", f"stream, {made}", "clips/s", streamed, decode, "decoding alone, all cores")
    else:
        console.print("bench loader: streaming is not measured, because DALI is not installed", style="yellow")
    with quietly():
        kept = log_mel_cache.find(stream, log_mel_cache.layout(stream))
        start = time.perf_counter()
        held = placed(stream)
        taken = time.perf_counter() - start
    if not isinstance(held, ResidentLoader):
        why = "data.store is stream" if bench.config.data.store == "stream" else "there is no room for log-mels"
        console.print(f"bench loader: training here streams, because {why}; memory is not measured", style="yellow")
        return
    if kept is None:  # else there was no pass to measure
        samples = bench.shards.clips_in("train").column("samples").to_numpy()
        what = f"first pass over the audio, clips of {samples.mean() / SAMPLE_RATE_HZ:.2f} s"
        yield Measured("loader", what, "clips/s", [bench.clips / taken], decode, "decoding alone, all cores")
    values = bench.config.frontend.n_mels * bench.config.crop_frames
    moved = bench.method.views * values * ((2 + 2) + (2 + 4))  # float16 gathered, then transposed to float32
    floor = (bench.copy_rate / moved, "copies at the copy rate") if held.store == "resident" else (None, "")
    yield Measured("loader", f"{held.store}, {made}", "clips/s", rates(held, limit), *floor)


def views(bench: Bench) -> Iterator[Measured]:
    """Mixup and random resize crop of a batch, of as many views as a training step has."""
    augment = Augmenter(bench.config, max(bench.clips, 2048), bench.device)
    crop, ids = bench.crop(), torch.arange(bench.batch_size, device=bench.device)
    crops, centroids = (crop,) * bench.method.views, bench.method.mixup_centroids
    draws = draws_of(bench.config, ids, 1, len(crops))
    moved = len(crops) * (4 + 4 + 2) * crop[0].numel()  # a crop read, a view written, a float16 partner read
    floor = bench.copy_rate / moved, "one read, one write"
    what = f"mixup + random resize crop, {counted(len(crops), 'view')}"
    yield Measured("views", what, "clips/s", bench.rates(lambda: augment(ids, crops, draws, centroids)), *floor)
    if bench.device.type == "cuda":
        augment.augmented = augmented_reference
        what = "the same by batched products"
        yield Measured("views", what, "clips/s", bench.rates(lambda: augment(ids, crops, draws, centroids)), *floor)


def step(bench: Bench) -> Iterator[Measured]:
    """A pre-training step on views that are there: forward passes, loss, backward, update, and what the method does
    after it, such as its bank, queue or moving average.
    """
    config, device, size, method = bench.config, bench.device, bench.batch_size, bench.method
    optimizer, ids = build_optimizer(method.network, config.optim), torch.arange(size, device=device)
    views = tuple(bench.crop()[..., :frames].contiguous() for frames in method.frames)
    ALONE.batch([size])

    def by(trained: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: torch.Tensor, network: torch.nn.Module | None = None) -> Any:
            with autocast(config, device):
                return (trained if network is None else network)(*inputs)

        return run

    def once(update: bool = True) -> None:
        bench.options.begin_step()
        with full_precision(config, device):
            method.loss(views, ids).backward()  # type: ignore[no-untyped-call]
        if update:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(ids)

    method.run = by(method.network)
    with FlopCounterMode(display=False) as counter:
        once(update=False)
    method.run = by(compiled(method.network, bench.options))
    flops = counter.get_total_flops() / size
    floor = bench.matmul_rate / flops, f"{flops / 1e9:.2f} GFLOP a clip at the matmul rate"
    with freed_memory_kept(device):
        rates, alone = bench.rates(once), bench.rates(lambda: once(update=False))
    name = "" if config.method.name == "decar-v2" else f"{config.method.name}, "
    name += f"{config.model.encoder}, {'bf16' if bench.amp else 'fp32'}, batch {size}"
    if bench.options.compile_mode != "default":
        name += f", {bench.options.compile_mode}"
    yield Measured("step", name, "clips/s", rates, *floor)
    yield Measured("step", "the same without update", "clips/s", alone, *floor)


def kmeans(bench: Bench) -> Iterator[Measured]:
    """A pass over the rows of spherical k-means at the paper's K and D: of ten iterations and the last assignment."""
    n = 250_000 if bench.device.type != "cpu" else 10_000 if bench.quick else 100_000
    d, k, iterations = 512, 512, 10
    generator = torch.Generator(bench.device).manual_seed(0)
    points = normalize(torch.randn(n, d, device=bench.device, generator=generator), dim=1)
    start = points[:k].clone()
    backend = resolve_backend(bench.config.cluster.backend, bench.device)
    taken = bench.seconds(lambda: spherical_kmeans(points, k, iterations=iterations, init=start, backend=backend))
    floor = 1e3 * 2 * n * d * k / machine.matmul_rate(bench.device, torch.float32)
    what, passes = f"iteration, {n:,} x {d}, K {k}, {backend}", [1e3 * seconds / (iterations + 1) for seconds in taken]
    yield Measured("kmeans", what, "ms", passes, floor, "2NDK at the float32 matmul rate")


def bank(bench: Bench) -> Iterator[Measured]:
    """A generation of the bank: until training continues, and until it is on disk."""
    n, d, dtype = (20_000 if bench.quick else 250_000), 512, bench.config.bank.dtype
    held = MemoryBank(n, d, 0, bench.device, dtype)
    assignments = torch.zeros(n, dtype=torch.int64, device=bench.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate = machine.write_rate(folder, 1 << 26 if bench.quick else 1 << 28)
        blocked, total = list[float](), list[float]()
        for epoch in range(bench.repeats + 1):
            start = time.perf_counter()
            write = held.snapshot(folder / "bank.zarr", epoch, assignments)
            blocked.append(time.perf_counter() - start)
            write()
            total.append(time.perf_counter() - start)
    size = n * (d * held.rows.element_size() + 8)
    disk = [n / seconds for seconds in total[1:]]
    what = f"generation of {n:,} x {d} on disk, {dtype}"
    yield Measured("bank", what, "rows/s", disk, n * rate / size, "raw write + fsync")
    waits = [1e3 * seconds for seconds in blocked[1:]]
    yield Measured("bank", "training waits for it", "ms", waits, 1e3 * 2 * size / bench.copy_rate, "one copy")


def epoch(bench: Bench) -> Iterator[Measured]:
    """Epochs of the real `train pretrain`, the first left out, and the share of each part."""
    from unfused_fast.stages import pretrain

    epochs = 3 if bench.quick and bench.clips > 256 else 6
    values = {"train.epochs": epochs, "train.batch_size": bench.batch_size, "train.save_every": epochs}
    with tempfile.TemporaryDirectory() as name, quietly():
        out = Path(name) / "run"
        pretrain(with_values(bench.config, values), bench.shards, out, bench.options)
        warm = log_of(out)[1:]
    what, each = f"train pretrain, {bench.clips:,} clips", [1 / row["epoch_seconds"] for row in warm]
    yield Measured("epoch", what, "epochs/s", each)
    yield Measured("epoch", "the same", "clips/s", [row["clips_per_second"] for row in warm])
    for part in dict.fromkeys(name for row in warm for name in row["parts"]):  # not every epoch has all
        shares = [100 * row["parts"].get(part, 0.0) / row["epoch_seconds"] for row in warm]
        yield Measured("epoch", f"share of {part}", "%", shares)


def log_of(run: Path) -> list[dict[str, Any]]:
    """The numbers of each epoch of a run."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


PARTS: dict[str, Callable[[Bench], Iterator[Measured]]] = {
    "loader": loader,
    "views": views,
    "step": step,
    "kmeans": kmeans,
    "bank": bank,
    "epoch": epoch,
}


def limit(rows: list[Measured]) -> str | None:
    """What bounds an epoch here, in a sentence; None where no epoch was measured."""
    shares = {row.what.removeprefix("share of "): spread(row.values).p50 for row in rows if row.unit == "%"}
    if not shares:
        return None
    part, share = max(shares.items(), key=lambda entry: entry[1])
    said = f"bottleneck: {part}, {share:.0f} % of an epoch"
    steps = [row for row in rows if row.part == "step" and row.share is not None]
    if part.startswith(("forward", "backward")) and steps:
        return f"{said}; the step runs at {100 * (steps[0].share or 0):.0f} % of what the matmul rate allows"
    return said
