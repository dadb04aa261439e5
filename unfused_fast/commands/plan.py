"""`unfused-fast plan`: bytes and hours of pre-training on a set of some size, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Json, Preset, Sets, run_options, stage_config
from unfused_fast.commands.output import print_json, stdout_console


def plan(
    clips: Annotated[int, typer.Option(help="Clips of the train split.", min=2, max=10**9, show_default=False)],
    seconds: Annotated[float, typer.Option(help="Length of a clip.", min=0.1, max=3600)] = 10.0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the set.", show_default="preset's")] = None,
    devices: Annotated[
        int, typer.Option(help="GPUs of one machine, a process each; communication is not counted.", min=1)
    ] = 1,
    device: Annotated[
        Literal["auto", "cpu", "h100", "h200", "a100"],
        typer.Option(help="This machine (auto, cpu), or the memory of a GPU by its data sheet."),
    ] = "auto",
    rates_file: Annotated[
        Path | None,
        typer.Option(
            "--rates",
            help="What `unfused-fast bench all --json` measured on the machine to run on.",
            show_default="a quick measurement here; for a named GPU no times",
        ),
    ] = None,
    host_gb: Annotated[
        float | None,
        typer.Option(help="Memory of the host, in GB.", show_default="what is free; of a named GPU's unknown", min=0),
    ] = None,
    device_gb: Annotated[
        float | None,
        typer.Option(help="Memory of a device, in GB.", show_default="what is free, or the data sheet", min=0),
    ] = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Disk, memory and hours of pre-training on a set of some size, before anything is made; and what does not fit."""
    from unfused_fast.commands.measure.estimate import GPU_BYTES, Machine, estimate
    from unfused_fast.commands.measure.rates import measured_here, read_rates
    from unfused_fast.data import free_memory

    config = stage_config("pretrain", preset, settings, epochs, 0)
    on_device, on_host = (None if size is None else size * 1e9 for size in (device_gb, host_gb))
    rates = None if rates_file is None else read_rates(rates_file)
    if device in GPU_BYTES:
        machine = Machine("cuda", GPU_BYTES[device] if on_device is None else on_device, on_host, devices)
    else:
        options = run_options(device, None, False, False)
        free = free_memory(options.device)
        on_device = float(free.device) if on_device is None else on_device
        on_host = float(free.host) if on_host is None else on_host
        machine = Machine(options.device.type, on_device, on_host, devices)
        rates = rates or measured_here(config, options, clips, seconds)
    found = estimate(config, clips, seconds, machine, rates)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from unfused_fast.console import counted
    from unfused_fast.data import gigabytes
    from unfused_fast.evaluation import terminal_table

    machine = f", {found['devices']} devices of one machine" if found["devices"] > 1 else ""
    title = (
        f"stage 1, {found['clips']:,} clips of {found['seconds']:g} s, {counted(found['epochs'], 'epoch')}, "
        f"batch {found['batch_size']}, K {', '.join(map(str, found['heads']))}{machine}"
    )
    rows = []
    for where in ("disk", "device", "host"):
        sizes = found[where] | ({} if where == "disk" else {"sum": found[f"{where}_bytes"]})
        rows += [[where, name, f"{size:,}", gigabytes(size)] for name, size in sizes.items()]
    stdout_console().print(terminal_table(title, ["where", "what", "bytes", ""], rows))
    print(f"--data {found['store']}: {found['why']}")
    for problem in found["problems"]:
        print(problem)
    print(f"{found['flops_per_clip'] / 1e9:.2f} GFLOP a clip")
    if found["hours"] is not None:
        print(f"rates: {found['basis']}")
        parts, once = (
            ", ".join(f"{name} {_duration(taken)}" for name, taken in found[key].items()) for key in ("epoch", "once")
        )
        print(f"an epoch: {_duration(found['epoch_seconds'])} ({parts})")
        print(f"the run: {found['hours']:,.2f} hours, of which once: {once or 'nothing'}")
    if found["unknown"]:
        print(f"unknown: {'; '.join(found['unknown'])}")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds:,.3g} s"
