"""`unfused-fast plan`: bytes and hours of a run that is not made yet; part of the command line, cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Json, Preset, Sets, print_json, run_options, stage_config, stdout_console
from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from unfused_fast.commands.estimate import Plan

MOST_CLIPS = 1_000_000_000
"""A key has nine digits."""


def plan(
    clips: Annotated[int, typer.Option(help="Clips of the train split.", min=2, max=MOST_CLIPS, show_default=False)],
    seconds: Annotated[float, typer.Option(help="Length of a clip.", min=0.1, max=3600)] = 10.0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the set.", show_default="preset's")] = None,
    devices: Annotated[
        int,
        typer.Option(help="GPUs of the machine, each with a process; what they tell each other is not counted.", min=1),
    ] = 1,
    device: Annotated[
        Literal["auto", "cpu", "h100", "h200", "a100"],
        typer.Option(help="What to run on: this machine (auto, cpu), or a GPU by its data sheet."),
    ] = "auto",
    rates_file: Annotated[
        Path | None,
        typer.Option(
            "--rates",
            help="What `unfused-fast bench all --json` measured on the machine to run on.",
            show_default="a quick measurement here; data sheets for a named GPU",
        ),
    ] = None,
    matmul_tflops: Annotated[
        float | None,
        typer.Option(help="Matrix products of a named GPU, in TFLOP/s.", show_default="its data sheet", min=0.001),
    ] = None,
    peak_share: Annotated[
        float | None,
        typer.Option(help="Share of these peaks that is assumed.", show_default="0.2", min=0.001, max=1),
    ] = None,
    host_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory of the host, in GB.", show_default="what is free here; of a named GPU's unknown", min=0
        ),
    ] = None,
    device_gb: Annotated[
        float | None,
        typer.Option(help="Memory of a device, in GB.", show_default="what is free here, or the data sheet", min=0),
    ] = None,
    flac_share: Annotated[
        float | None,
        typer.Option(
            help="Bytes of FLAC for one of samples.", show_default="0.56, of speech and notes", min=0.001, max=2
        ),
    ] = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Disk, memory and hours of pre-training on a set of some size, before anything is made; and what does not fit."""
    from unfused_fast.commands.estimate import Machine, clusters_of
    from unfused_fast.commands.estimate import plan as planned
    from unfused_fast.commands.plan_bytes import FLAC_SHARE, step_cost
    from unfused_fast.commands.plan_rates import PEAK_SHARE, SHEETS, measured_here, read_rates, sheet_rates
    from unfused_fast.data import free_memory
    from unfused_fast.training import quietly, resolve_batch_size

    if device in ("auto", "cpu") and (matmul_tflops is not None or peak_share is not None):
        raise UserError(
            f"--device {device}: this machine is measured, so --matmul-tflops and --peak-share do not apply; name "
            "h100, h200 or a100, or leave them out"
        )
    if rates_file is not None and (matmul_tflops is not None or peak_share is not None):
        raise UserError("--rates gives measured rates; leave out --matmul-tflops and --peak-share")
    config = stage_config("pretrain", preset, settings, epochs, 0)
    with quietly():
        cost, batch_size = step_cost(config, clusters_of(config, clips)), resolve_batch_size(config, clips)
    sheet = None if device == "auto" or device == "cpu" else SHEETS[device]
    host = None if host_gb is None else host_gb * 1e9
    memory = None if device_gb is None else device_gb * 1e9
    if sheet is not None:
        machine = Machine("cuda", sheet.memory_bytes if memory is None else memory, host, devices)
        rates = (
            sheet_rates(sheet, config, cost, peak_share or PEAK_SHARE, matmul_tflops) if rates_file is None else None
        )
    else:
        options = run_options(device, None, False, False)
        free = free_memory(options.device)
        on_device = float(free.device) if memory is None else memory
        machine = Machine(options.device.type, on_device, float(free.host) if host is None else host, devices)
        rates = measured_here(config, options, seconds, batch_size) if rates_file is None else None
    if rates is None:
        assert rates_file is not None
        rates = read_rates(rates_file, config, cost)
    made = planned(config, clips, seconds, machine, rates, FLAC_SHARE if flac_share is None else flac_share, cost)
    if as_json:
        print_json(made.as_json())
        return
    _print(made)


def _print(made: Plan) -> None:
    from unfused_fast.data import gigabytes
    from unfused_fast.evaluation import terminal_table

    shared = f", {made.devices} devices of one machine" if made.devices > 1 else ""
    title = (
        f"stage 1, {made.clips:,} clips of {made.seconds:g} s, {made.epochs} epochs, batch {made.batch_size}, "
        f"K {', '.join(map(str, made.heads))}{shared}"
    )
    rows = []
    sections: tuple[tuple[str, dict[str, int], bool], ...] = (
        ("disk", made.disk, False),
        ("a device" if made.devices > 1 else "device", made.device, True),
        ("host", made.host, True),
    )
    for where, sizes, summed in sections:
        rows += [[where, name, f"{size:,}", gigabytes(size)] for name, size in sizes.items()]
        if summed:
            rows.append([where, "sum", f"{sum(sizes.values()):,}", gigabytes(sum(sizes.values()))])
    stdout_console().print(terminal_table(title, ["where", "what", "bytes", ""], rows))
    print(f"--data {made.store}: {made.why}")
    for trouble in made.troubles:
        print(trouble)
    print(f"rates: {made.basis}; {made.flops_per_clip / 1e9:.2f} GFLOP a clip")
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in made.epoch.items())
    bound = "at least " if made.unknown else ""
    where = f"{made.devices} devices" if made.devices > 1 else "one device"
    print(f"an epoch on {where}: {bound}{_duration(made.epoch_seconds)} ({parts})")
    if made.floor_seconds is not None:
        print(f"at the theoretical peak of the data sheet, unreachable in practice: {_duration(made.floor_seconds)}")
    once = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in made.once.items()) or "nothing"
    print(f"the run: {bound}{made.hours:,.2f} hours, of which once: {once}")
    if made.unknown:
        print(f"not in these times, as these rates do not tell it: {'; '.join(made.unknown)}")


def _duration(seconds: Any) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds:,.3g} s"
