"""What pre-training on a set of some size needs: bytes by formula, times by rates that `unfused-fast bench` measured.

N clips, D size of a projection, K clusters, F mel bins, T frames of a crop. A rank is a process, with a device of its
own.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unfused_fast.clustering import GENERATIONS_KEPT
from unfused_fast.commands.measure.rates import Rates
from unfused_fast.config import Config, Store
from unfused_fast.data import choose, gigabytes
from unfused_fast.distributed import ALONE, Share
from unfused_fast.errors import UserError
from unfused_fast.memory import Free, pinned_bytes
from unfused_fast.methods import DeepClustering, Method, method_class
from unfused_fast.models import clip_cost, step_bytes
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, WAV_HEADER_BYTES
from unfused_fast.shards.packing.layout import SHARD_BYTES, SHARD_CLIPS, SHARDS_PER_SPLIT
from unfused_fast.shards.sets.shard_files import padded
from unfused_fast.training import KEPT, quietly, resolve_amp, resolve_batch_size

GPU_BYTES: Mapping[str, float] = {"h100": 80e9, "h200": 141e9, "a100": 80e9}
"""Memory of the SXM cards. Source: NVIDIA's data sheets."""
FLAC_SHARE = 0.56
"""Bytes of FLAC for one of 16-bit samples. Ours: of every seventh of the embedded recordings; noise takes more."""
INDEX_BYTES = 90
"""Of a clip's three lines in the index of its tar. Ours: with offsets of nine digits."""
TABLE_BYTES = 260
"""Of a clip's row in the clips table in memory. Ours: with a source name of 24 letters."""
ORDER_BYTES = 64
"""Of a clip's place in an epoch on the host. Ours: eight columns of 8 bytes."""
KMEANS_SHARE = 0.08
"""Most memory that spherical k-means takes beside the bank, as a share of it. Source: test_spherical_kmeans.py."""
PIC_EDGE_BYTES = 160
"""Of an edge to a neighbour, while both directions are sorted and added up. Ours: 17 arrays of 8 bytes, and the sort's
own.
"""
PIC_CLUSTERS = 512
"""K that is assumed where the algorithm finds it."""


@dataclass(frozen=True)
class Machine:
    """What there is to run on; sizes in bytes. The host's is None where it is not known."""

    kind: str
    """`cuda` or `cpu`."""
    device_bytes: float
    """Of each device; 0 on a CPU."""
    host_bytes: float | None
    """Of each machine."""
    devices: int = 1
    """On all machines, a rank each."""
    machines: int = 1

    @property
    def ranks(self) -> int:
        """Of one machine."""
        return self.devices // self.machines


def estimate(config: Config, clips: int, seconds: float, machine: Machine, rates: Rates | None) -> dict[str, Any]:
    """Bytes on disk, device and host, seconds of an epoch's parts and of what comes once, and what does not fit.

    Bytes of the device are those of one rank, which holds the bank's rows and the log-mels of its own N / ranks clips,
    its part of the mixup memory, and the clusters of all; bytes of the host are those of the machine of rank 0, which
    also holds a copy of the whole bank while it is saved. Steps, clustering and reading are shared. Raises UserError:
    machines do not have equally many devices, or training would refuse the config.
    """
    if machine.devices % machine.machines:
        raise UserError(
            f"--devices {machine.devices} --machines {machine.machines}: want equally many devices in each machine; "
            f"use --devices {machine.machines * max(1, machine.ranks)}"
        )
    Share(0, machine.devices).of_partitions(config.data.partitions)  # refuses what training would refuse
    with quietly():
        method, batch_size = hollow(config, clips), resolve_batch_size(config, clips)
    heads = (method.k, *map(int, config.cluster.heads[1:])) if isinstance(method, DeepClustering) else ()
    cuda, devices, own = machine.kind == "cuda", machine.devices, -(-clips // machine.devices)
    flops, kept_bytes = step_cost(method)
    network, trained = network_bytes(method)
    counted = (method.network, *method.signs_of_collapse, getattr(method, "heads", None))
    beside = bytes_of(module for module in method.children() if not any(module is one for one in counted))
    row = method.bank.rows[0].nbytes if method.bank is not None else 0
    part = -(-batch_size // (devices * config.train.accumulate))
    kept = part * kept_bytes
    device = dict[str, int]()
    if method.bank is not None:
        device = {
            "memory bank": own * (row + 4),  # and write counts
            "clusters of all clips": clips * 2 * 8 * len(heads),  # these and the last
            "k-means, about": kmeans_bytes(own, clips, max(heads), config),
        }
    device["network, gradients, optimiser"] = network + trained
    if beside:
        device["queues, networks that follow"] = beside
    if devices > 1:
        device["gradients in buckets"] = trained
    mixup = 0
    if config.aug.mixup.ratio > 0:
        held = config.aug.mixup.held(clips, config.data.partitions) * config.data.partitions
        mixup = held * 2 * config.frontend.n_mels * config.crop_frames
        device["mixup memory"] = mixup // devices
    host = {
        "clips table": TABLE_BYTES * clips * machine.ranks,
        "order of an epoch, about": ORDER_BYTES * clips * machine.ranks,
    }
    if row:
        copied = clips * row, 8 * clips
        host["copy of the bank being saved"] = sum(pinned_bytes(size) if cuda else size for size in copied)
    log_mels, own_log_mels = (log_mel_bytes(number, seconds, config) for number in (clips, own))
    step = step_bytes(config, part * method.views)
    store, why = _store(config, own_log_mels, machine, sum(device.values()), sum(host.values()), step)
    half = cuda or resolve_amp(config, torch.device("cpu"))
    device["kept for the backward pass, about"] = kept // 2 if half else kept
    if store == "resident":
        device["log-mels"] = own_log_mels
    elif store == "pinned":
        host["log-mels"] = own_log_mels * machine.ranks
    checkpoint = network + beside + mixup + sum(heads) * config.model.proj_dim * 4 + 8 * clips * len(heads)
    generation = clips * (row + 8) if row else 0
    tars, wav, flac = shard_bytes(clips, seconds)
    within = checkpoint + generation + (4 * clips if row else 0)
    disk = {
        f"shards, wav ({tars:,} tars)": wav,
        f"shards, flac (about, at {FLAC_SHARE:g} of the samples)": flac,
        "log-mel cache": log_mels + 16 * clips,
        "one checkpoint": checkpoint,
    }
    if row:
        disk |= {"one generation of the bank": generation, "one checkpoint within an epoch, with the bank": within}
        run = f"run, at most: {KEPT + 1} of these, 1 of an epoch's end, {GENERATIONS_KEPT + 1} generations"
    else:
        run = f"run, at most: {KEPT + 2} of these"
    disk[run] = (KEPT + 1) * within + checkpoint + (GENERATIONS_KEPT + 1) * generation
    found: dict[str, Any] = {
        "clips": clips,
        "seconds": seconds,
        "epochs": config.train.epochs,
        "devices": devices,
        "machines": machine.machines,
        "heads": heads,
        "batch_size": batch_size,
        "store": store,
        "why": why,
        "disk": disk,
        "device": device,
        "device_bytes": sum(device.values()),
        "host": host,
        "host_bytes": sum(host.values()),
        "problems": list(_problems(machine, device, host)),
        "flops_per_clip": flops,
    }
    if rates is None:
        found |= {"basis": "none", "epoch": {}, "epoch_seconds": None, "once": {}, "hours": None}
        return {**found, "unknown": ["all times: give --rates, measured on that machine"]}
    ratio = rates.gflop_per_clip * 1e9 / flops
    scaled = abs(ratio - 1) > 0.01
    epoch, once, unknown = (
        {"training": clips / (rates.training * (ratio if scaled else 1.0)) / devices},
        {},
        list[str](),
    )
    if devices > 1:
        unknown.append("communication of the devices")
    if store in rates.loader:
        share = devices if store in ("resident", "pinned") else machine.machines  # else the host's
        epoch["loading"] = clips / rates.loader[store] / share
    else:
        unknown.append(f"loading with --data {store}")
    if row and config.bank.fill != "pass":
        once["first pass of the bank"] = epoch["training"] / (4 if config.bank.own_forward else 3)
    if store != "stream" and rates.first_pass is not None:
        once["log-mels, once a set"] = clips * seconds / rates.first_pass / machine.machines
    elif store != "stream":
        unknown.append("making the log-mels, once a set")
    total = sum(epoch.values())
    return {
        **found,
        "basis": rates.basis + (f"; scaled from {rates.gflop_per_clip:g} GFLOP a clip" if scaled else ""),
        "epoch": epoch,
        "epoch_seconds": total,
        "once": once,
        "hours": (config.train.epochs * total + sum(once.values())) / 3600,
        "unknown": unknown,
    }


def _store(
    config: Config, log_mels: int, machine: Machine, on_device: int, on_host: int, step: int
) -> tuple[Store, str]:
    """`--data`: as set, or what `auto` would choose for a rank's log-mels with what is left of the machine, of which a
    step takes some more.
    """
    if config.data.store != "auto":
        return config.data.store, "as set by data.store"
    host_left = (machine.host_bytes or 0) - on_host - (on_device * machine.ranks if machine.kind == "cpu" else 0)
    free = Free(max(0, round(machine.device_bytes - on_device)), max(0, round(host_left)) // machine.ranks)
    store, why = choose(log_mels, torch.device(machine.kind), free, None, machine.devices, step)
    if machine.host_bytes is None:
        advice = "" if store == "resident" else "; give --host-memory to choose among the host's stores"
        each = " a process" if machine.devices > 1 else ""
        why = f"the log-mels take {gigabytes(log_mels)}{each}; {gigabytes(free.device)} on the GPU are free{advice}"
    return store, why


def _problems(machine: Machine, device: Mapping[str, int], host: Mapping[str, int]) -> Iterator[str]:
    """What does not fit, and what to do."""
    on_device = dict(device) if machine.kind == "cuda" else {}
    of_ranks = {} if on_device else {name: size * machine.ranks for name, size in device.items()}
    for where, sizes, memory in (
        ("on a device", on_device, machine.device_bytes),
        ("in the host's memory", {**host, **of_ranks}, machine.host_bytes),
    ):
        if memory is None or sum(sizes.values()) <= memory:
            continue
        largest = max(sizes, key=lambda name: sizes[name])
        advice = (
            "use --set bank.dtype=bf16, more --devices, or fewer clips"
            if largest == "memory bank"
            else "use a smaller train.batch_size, or --data mmap or stream"
        )
        yield (
            f"does not fit: {gigabytes(sum(sizes.values()))} {where} of {gigabytes(round(memory))}, of which {largest} "
            f"takes {gigabytes(sizes[largest])}; {advice}"
        )


def _tar_bytes(audio_bytes: int) -> int:
    """Of a clip in a tar: three headers, its index and JSON of one block each, and the audio."""
    return 5 * tarfile.BLOCKSIZE + padded(audio_bytes)


def shard_bytes(clips: int, seconds: float) -> tuple[int, int, int]:
    """Tars of one split, and bytes of them and of their indexes as WAV, within a per cent, and as FLAC. Source:
    shards/packing/layout.py.
    """
    samples = 2 * round(seconds * SAMPLE_RATE_HZ)
    wav, flac = _tar_bytes(WAV_HEADER_BYTES + samples), _tar_bytes(round(FLAC_SHARE * samples))
    tars = -(-clips // min(max(SHARD_CLIPS, -(-clips // SHARDS_PER_SPLIT)), max(1, SHARD_BYTES // wav)))
    more = clips * INDEX_BYTES + tars * tarfile.RECORDSIZE
    return tars, clips * wav + more, clips * flac + more


def log_mel_bytes(clips: int, seconds: float, config: Config) -> int:
    """Of the log-mels of clips of one length, as float16 in memory. Source: log_mel_cache.layout."""
    longest = round(max(seconds, config.data.crop_seconds) * SAMPLE_RATE_HZ)
    return clips * (1 + longest // config.frontend.hop_samples) * config.frontend.n_mels * 2


def kmeans_bytes(own: int, clips: int, k: int, config: Config) -> int:
    """Of a clustering on a rank beside its `own` rows: about, and at most for `spherical`; the principal components of
    the others are those of all clips.
    """
    dim, settings = config.model.proj_dim, config.cluster
    rows = own * dim * 4
    if settings.algo == "spherical":
        return (0 if config.model.l2_normalize else rows) + math.ceil(KMEANS_SHARE * rows) + k * dim * (4 + 8 + 4)
    components = min(dim, 128 if settings.pca_dim == "auto" else settings.pca_dim)
    graph = clips * settings.pic_neighbours * PIC_EDGE_BYTES if settings.algo == "pic" else 0
    # the components and a copy: with a 1 appended (euclidean_kmeans) or padded (nearest_neighbours)
    return 8 * clips * components + graph + dim * dim * 8 + k * components * 16


def hollow(config: Config, clips: int) -> Method:
    """The method on tensors without memory, with heads, as in its second epoch. Raises UserError where training would
    refuse the config.
    """
    config = replace(config, cluster=replace(config.cluster, backend="torch"))  # no other knows such tensors
    meta = torch.device("meta")
    with meta:
        method = method_class(config)(config, clips, 0, meta, ALONE)
    k = (method.k or PIC_CLUSTERS) if isinstance(method, DeepClustering) else 0
    method.load_notes({"epoch": 1, "batch": 1, "k": k, "nmis": [], "collapsed": 0})
    method.run = lambda *inputs, network=None: (method.network if network is None else network)(*inputs)
    return method.train()


def step_cost(method: Method) -> tuple[int, int]:
    """As clip_cost, of the method's loss; all else that it does in a step takes little."""
    bins = method.config.frontend.n_mels

    def loss(batch: int) -> Tensor:
        ALONE.batch([batch])
        views = (torch.empty(batch, 1, bins, frames, device="meta") for frames in method.frames)
        return method.loss(tuple(views), torch.arange(batch, device="meta"))

    return clip_cost(loss)


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Of all their tensors."""
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def network_bytes(method: Method) -> tuple[int, int]:
    """Of network and optimiser state, and of the gradients, in float32."""
    trained = 4 * sum(parameter.numel() for parameter in method.network.parameters())
    return bytes_of([method.network]) + trained * (2 if method.config.optim.name == "adamw" else 1), trained
