"""`unfused-fast plan`: what pre-training on a set of some size needs, in bytes and hours, before anything is made.

N clips, D size of a projection, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from unfused_fast.clustering import GENERATIONS_KEPT
from unfused_fast.commands import plan_bytes
from unfused_fast.commands.plan_rates import Rates
from unfused_fast.config import Config, Store
from unfused_fast.data import Free, choose, gigabytes, pinned_bytes
from unfused_fast.methods import resolve_k
from unfused_fast.training import KEPT, quietly, resolve_amp, resolve_batch_size

ORDER_BYTES = 64
"""Of a clip's place in an epoch on the host. Ours: eight columns of 8 bytes: ids, counters, places, lengths, spans."""
PIC_CLUSTERS = 512
"""K that is assumed where the algorithm finds it."""


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    kind: str
    """`cuda` or `cpu`."""
    memory: float | None
    """Bytes of each device; None: not known."""
    host: float | None
    """Bytes of the host that can be taken; None: not known."""
    devices: int = 1


@dataclass(frozen=True)
class Plan:
    """What a run takes: bytes, seconds, and what does not fit."""

    clips: int
    seconds: float
    epochs: int
    devices: int
    heads: tuple[int, ...]
    """K of each head."""
    batch_size: int
    store: Store
    """`--data` to use."""
    why: str
    """Why that one."""
    disk: dict[str, int]
    device: dict[str, int]
    """Of each device; on a CPU in the host's memory."""
    host: dict[str, int]
    flops_per_clip: int
    epoch: dict[str, float]
    """Seconds of each part."""
    unknown: list[str]
    """Parts of the time that are not known from these rates."""
    once: dict[str, float]
    """Seconds of the parts that come once."""
    basis: str
    peak_share: float | None
    """As in Rates."""
    troubles: list[str] = field(default_factory=list)

    @property
    def epoch_seconds(self) -> float:
        """Of one epoch, on all devices."""
        return sum(self.epoch.values())

    @property
    def hours(self) -> float:
        """Of the whole run, on all devices."""
        return (self.epochs * self.epoch_seconds + sum(self.once.values())) / 3600

    @property
    def floor_seconds(self) -> float | None:
        """Of one epoch at the full peaks of the data sheet, which is a bound; None where the rates were measured."""
        return None if self.peak_share is None else self.epoch_seconds * self.peak_share

    def as_json(self) -> dict[str, Any]:
        """All of it, sums included."""
        return {
            **vars(self),
            "device_bytes": sum(self.device.values()),
            "host_bytes": sum(self.host.values()),
            "epoch_seconds": self.epoch_seconds,
            "floor_seconds": self.floor_seconds,
            "hours": self.hours,
        }


def clusters_of(config: Config, clips: int) -> tuple[int, ...]:
    """K of each head on a set of `clips` train clips, or PIC_CLUSTERS."""
    with quietly():
        return (resolve_k(config, clips) or PIC_CLUSTERS, *map(int, config.cluster.heads[1:]))


def plan(
    config: Config,
    clips: int,
    seconds: float,
    machine: Machine,
    rates: Rates,
    flac_share: float,
    cost: plan_bytes.StepCost,
) -> Plan:
    """What stage 1 takes for `clips` train clips of one length, each of which `cost` so much.

    Several devices are those of one machine, with a process each: every one holds the whole bank, and all log-mels
    where they are resident or pinned; steps, clustering and reading from memory are shared.
    """
    cuda, devices = machine.kind == "cuda", machine.devices
    with quietly():
        heads, batch_size = clusters_of(config, clips), resolve_batch_size(config, clips)
    device = {
        "memory bank": plan_bytes.bank_memory_bytes(clips, config),
        "k-means, about": plan_bytes.kmeans_bytes(-(-clips // devices), max(heads), config),  # one head after another
        "network, gradients, optimiser": plan_bytes.network_bytes(config),
    }
    if devices > 1:
        device["gradients as one message"] = plan_bytes.message_bytes(config)
    kept = -(-batch_size // (devices * config.train.accumulate)) * cost.kept_bytes
    half = cuda or resolve_amp(config, torch.device("cpu"))
    activations = {"kept for the backward pass, about": kept // 2 if half else kept}
    host = {
        "clips table": plan_bytes.clips_table_bytes(clips) * devices,
        "order of an epoch, about": ORDER_BYTES * clips * devices,
        "copy of the bank being saved": sum(
            pinned_bytes(size) if cuda else size for size in (plan_bytes.bank_rows_bytes(clips, config), 8 * clips)
        ),
    }
    log_mels = plan_bytes.log_mel_bytes(clips, seconds, config)
    store, why = _store(config, log_mels, machine, sum(device.values()), sum(host.values()))
    device |= activations
    if store == "resident":
        device["log-mels"] = log_mels
    elif store == "pinned":
        host["log-mels, pinned"] = pinned_bytes(log_mels) * devices
    checkpoint = plan_bytes.checkpoint_bytes(clips, heads, config, cuda)
    generation = plan_bytes.bank_generation_bytes(clips, config)
    within = checkpoint + generation + 4 * clips  # rows, assignments, and how often each row was written
    wav, tars = plan_bytes.shard_sizes(clips, seconds)
    disk = {
        f"shards, wav ({tars:,} tars)": wav,
        f"shards, flac (about, at {flac_share:g} of the samples)": plan_bytes.shard_sizes(clips, seconds, flac_share)[
            0
        ],
        "log-mel cache": plan_bytes.log_mel_cache_bytes(clips, seconds, config),
        "one checkpoint": checkpoint,
        "one generation of the bank": generation,
        "one checkpoint within an epoch, with the bank": within,
        f"run, at most: {KEPT + 1} of these, 1 of an epoch's end, {GENERATIONS_KEPT + 1} generations": (KEPT + 1)
        * within
        + checkpoint
        + (GENERATIONS_KEPT + 1) * generation,
    }
    epoch, once, unknown = _times(config, clips, seconds, heads, store, rates, checkpoint, generation, devices)
    return Plan(
        clips=clips,
        seconds=seconds,
        epochs=config.train.epochs,
        devices=devices,
        heads=heads,
        batch_size=batch_size,
        store=store,
        why=why,
        disk=disk,
        device=device,
        host=host,
        flops_per_clip=cost.flops,
        epoch=epoch,
        unknown=unknown,
        once=once,
        basis=rates.basis,
        peak_share=rates.peak_share,
        troubles=list(_troubles(machine, device, host)),
    )


def _store(config: Config, log_mels: int, machine: Machine, on_device: int, on_host: int) -> tuple[Store, str]:
    """`--data`: as set, or what `auto` would choose with what is left of the machine."""
    if config.data.store != "auto":
        return config.data.store, "as data.store says"
    device_left = max(0, round((machine.memory or 0) - on_device))
    host_left = max(0, round((machine.host or 0) - on_host - (on_device if machine.kind == "cpu" else 0)))
    free = Free(device_left, host_left // machine.devices)
    store, why = choose(log_mels, torch.device(machine.kind), free, None)
    return store, why if machine.host is not None else f"{why}; of the host nothing is known without --host-gb"


def _times(
    config: Config,
    clips: int,
    seconds: float,
    heads: tuple[int, ...],
    store: Store,
    rates: Rates,
    checkpoint: int,
    generation: int,
    devices: int,
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Seconds of an epoch's parts, of what comes once, and which parts are not known.

    Ours: a step is four forward passes, of which its backward pass is two and the view for the bank one; where a pass
    of its own fills the bank, that view is the pass's, is not augmented, and its clips are read for it once more.
    """
    unknown, loading, forward = list[str](), rates.loader.get(store), clips / rates.step / devices / 4
    apart, clusterings = config.bank.fill == "pass", 1 / config.cluster.every_epochs
    epoch = {"step": forward * (3 if apart else 4)}
    if apart:
        epoch["bank pass"] = forward * clusterings
    if config.aug.mixup.ratio > 0 or config.aug.rrc.enabled:
        epoch["views"] = clips / rates.views / devices / (2 if apart else 1)
    if devices > 1:
        unknown.append("what the devices tell each other")
    if loading is None:
        unknown.append(f"loading with --data {store}")
    else:
        epoch["loading"] = clips / loading / (devices if store in ("resident", "pinned") else 1)  # else one host's
        if apart:  # one view at a time, which spares half where it is cut from the device's memory
            epoch["loading"] *= (1 + clusterings) / (2 if store == "resident" else 1)
    if config.cluster.algo == "spherical":
        passes = config.cluster.n_init * config.cluster.iterations + 1
        products = passes * 2 * clips * config.model.proj_dim * sum(heads) / rates.kmeans / devices
        epoch["k-means"] = (products + len(heads) * rates.clustering) * clusterings
    else:
        unknown.append(f"clustering by {config.cluster.algo}")
    if rates.disk is None:
        unknown.append("saving")
    else:
        training = sum(epoch.values()) * config.train.save_every
        # both are written in a thread, which the next save waits for
        waits = max(0.0, (checkpoint + generation) / rates.disk - training)
        epoch["saving"] = waits / config.train.save_every
    once = {} if apart else {"first pass of the bank": forward + epoch.get("views", 0.0) / 2}
    if store == "stream":
        return epoch, once, unknown
    if rates.first_pass is None:
        unknown.append("making the log-mels, once a set (decoding, on the host)")
    else:
        once["log-mels, once a set"] = clips * seconds / rates.first_pass
    return epoch, once, unknown


def _troubles(machine: Machine, device: dict[str, int], host: dict[str, int]) -> Iterator[str]:
    """What does not fit, and what to do."""
    largest = max(device, key=lambda name: device[name])
    on_device, on_host = sum(device.values()), sum(host.values())
    advice = (
        "use --set bank.dtype=bf16, more memory on the device, or fewer clips"
        if largest == "memory bank"
        else "use a smaller train.batch_size, or --data mmap or stream"
    )
    if machine.kind == "cpu":
        on_host, on_device = on_host + on_device, 0
    if machine.memory is not None and on_device > machine.memory:
        yield (
            f"does not fit: {gigabytes(on_device)} on a device of {gigabytes(round(machine.memory))}, of which "
            f"{largest} takes {gigabytes(device[largest])}; {advice}"
        )
    if machine.host is not None and on_host > machine.host:
        where = max(host, key=lambda name: host[name])
        yield (
            f"does not fit: {gigabytes(on_host)} in the host's memory, of which {gigabytes(round(machine.host))} can "
            f"be taken; the most is {where}, {gigabytes(host[where])}"
        )
