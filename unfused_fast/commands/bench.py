"""`unfused-fast bench`, figures of this machine beside what it could do; `unfused-fast plan`, bytes and hours of
pre-training on a set of some size, before anything is made.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Compile, CompileMode, Device, Json, Method, Preset, Sets
from unfused_fast.commands.options import run_options, stage_config
from unfused_fast.commands.output import open_set, show
from unfused_fast.errors import Interrupted, UserError, cause

if TYPE_CHECKING:
    from unfused_fast.commands.measure.parts import Measured

COLUMNS = (
    *("part", "what", "unit", "p20", "p50", "p80", "repeats", "floor", "floor_is", "share", "clips", "batch", "device"),
    *("cores", "versions", "commit", "date"),
)
"""Of `--rows`."""
Part = Literal["all", "loader", "views", "step", "kmeans", "bank", "epoch"]


def bench(
    part: Annotated[Part, typer.Argument(help="What to measure.")] = "all",
    shards: Annotated[
        str | None, typer.Argument(help="Shard set to measure on.", show_default="a synthetic one")
    ] = None,
    synthetic: Annotated[int, typer.Option(help="Number of clips of the synthetic set.", min=16)] = 512,
    seconds: Annotated[float, typer.Option(help="Length of these clips, in seconds.", min=0.1)] = 10.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats on smaller data; takes a few minutes at most on a laptop.")
    ] = False,
    rows_file: Annotated[
        Path | None, typer.Option("--rows", help="CSV file to append the rows to.", show_default="none")
    ] = None,
    method: Method = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    device: Device = "auto",
    compile_: Compile = None,
    compile_mode: CompileMode = "default",
    as_json: Json = False,
) -> None:
    """Measure how fast each part of pre-training runs on this machine.

    Each figure is compared with what the machine could do, measured in the same run. The parts kmeans and bank have the
    paper's sizes; `all` leaves them out for a method without a bank.
    """
    from unfused_fast.commands.measure.machine import circumstances
    from unfused_fast.commands.measure.parts import PARTS, Bench, Measured, limit
    from unfused_fast.commands.measure.synthetic import synthetic_set
    from unfused_fast.console import console, counted

    with _nothing_kept("bench"), ExitStack() as stack:
        config = stage_config("pretrain", preset, settings, None, None, method)
        options = run_options(device, compile_, compile_mode=compile_mode)
        _append(rows_file, [])  # before minutes of measuring, not after them
        if shards is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unfused-bench-")))
            shard_set = synthetic_set(folder, synthetic, seconds)
        else:
            shard_set = open_set(shards)
        measured = Bench(shard_set, config, options, quick)
        found = list[Measured]()
        left_out = () if measured.method.bank is not None or part != "all" else ("kmeans", "bank")
        for name in (name for name in PARTS if name not in left_out and part in (name, "all")):
            if not console.is_terminal:  # where no status is drawn
                console.print(f"bench: measuring {name}")
            with console.status(f"measuring {name}"):
                found += PARTS[name](measured)
        about = {"clips": measured.clips, "batch": measured.batch_size, **circumstances(options.device)}
    rows = [row.as_json(**about) for row in found]
    _append(rows_file, rows)
    bottleneck = limit(found)
    sentences = [bottleneck] if bottleneck else []
    if rows_file is not None:
        sentences.append(f"{counted(len(rows), 'row')} appended to {rows_file}")
    title = f"{about['device']}, {about['cores']} cores; {about['versions']}"
    columns = ["part", "what", "median", "p20 - p80", "unit", "limit", "of it", "limit set by"]
    show({"rows": rows, "limit": bottleneck}, as_json, [(title, columns, list(map(_line, found)))], sentences)


@contextmanager
def _nothing_kept(command: str) -> Iterator[None]:
    """Raises Interrupted, of the command and not of a run in its temporary folder, when a signal comes."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"{command}: stopped; nothing is kept") from error


def _line(row: Measured) -> list[str]:
    from unfused_fast.commands.measure.machine import spread

    low, median, high = map(_figure, spread(row.values))
    floor = "" if row.floor is None else _figure(row.floor)
    reached = "" if row.share is None else f"{100 * row.share:.0f} %"
    return [row.part, row.what, median, f"{low} - {high}", row.unit, floor, reached, row.floor_is]


def _figure(value: float) -> str:
    """Four digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _append(path: Path | None, rows: list[dict[str, object]]) -> None:
    from unfused_fast.commands.measure.machine import append_rows

    try:
        if path is not None:
            append_rows(path, COLUMNS, rows)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--rows {path}: no rows can be appended ({cause(error)}); name another file") from error


def plan(
    clips: Annotated[int, typer.Option(help="Clips of the train split.", min=2, max=10**9, show_default=False)],
    seconds: Annotated[float, typer.Option(help="Length of a clip, in seconds.", min=0.1, max=3600)] = 10.0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the set.", show_default="preset's")] = None,
    devices: Annotated[
        int, typer.Option(help="GPUs of all machines, one process for each; communication is not counted.", min=1)
    ] = 1,
    machines: Annotated[int, typer.Option(help="Machines, each with the same number of GPUs.", min=1)] = 1,
    device: Annotated[
        Literal["auto", "cpu", "h100", "h200", "a100"],
        typer.Option(help="This machine (auto, cpu), or a GPU with the memory of its data sheet."),
    ] = "auto",
    rates_file: Annotated[
        Path | None,
        typer.Option(
            "--rates",
            help="JSON file of `unfused-fast bench all --json`, measured on the machine to train on.",
            show_default="a quick measurement here; for a named GPU no times",
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of each machine, such as 512GB or 480GiB.",
            show_default="what is free here; for a named GPU unknown",
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of a device, such as 80GB or 74.5GiB.",
            show_default="what is free here; for a named GPU its data sheet",
        ),
    ] = None,
    method: Method = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Estimate disk, memory and hours of pre-training on a set of any size.

    It says what does not fit. Nothing is packed or trained.
    """
    from unfused_fast.commands.measure.estimate import GPU_BYTES, Machine, estimate
    from unfused_fast.commands.measure.rates import measured_here, read_rates
    from unfused_fast.console import console, counted
    from unfused_fast.data import gigabytes
    from unfused_fast.memory import free_memory

    config = stage_config("pretrain", preset, settings, epochs, None, method)
    rates = None if rates_file is None else read_rates(rates_file)
    if device in GPU_BYTES:
        machine = Machine("cuda", GPU_BYTES[device], None, devices, machines)
    else:
        options = run_options(device)
        machine = Machine(options.device.type, *free_memory(options.device), devices, machines)
        if rates is None:
            console.print(
                "plan: measuring this machine; to skip that, give --rates FILE or a GPU such as --device h100"
            )
            with _nothing_kept("plan"):
                rates = measured_here(config, options, clips, seconds)
    if device_memory is not None:
        machine = replace(machine, device_bytes=_bytes("--device-memory", device_memory))
    if host_memory is not None:
        machine = replace(machine, host_bytes=_bytes("--host-memory", host_memory))
    found = estimate(config, clips, seconds, machine, rates)
    sizes = [
        (where, name, size)
        for where in ("disk", "device", "host")
        for name, size in (found[where] | ({} if where == "disk" else {"sum": found[f"{where}_bytes"]})).items()
    ]
    rows = [[where, name, f"{size:,}", gigabytes(size)] for where, name, size in sizes]
    more = f", {devices} devices in {counted(machines, 'machine')}" if devices > 1 else ""
    title = (
        f"stage 1 by {config.method.name}, {clips:,} clips of {seconds:g} s, {counted(found['epochs'], 'epoch')}, "
        f"batch {found['batch_size']}{''.join(f', K {k}' for k in found['heads'])}{more}"
    )
    show(found, as_json, [(title, ["where", "what", "bytes", ""], rows)], _sentences(found))


def _bytes(flag: str, text: str) -> float:
    """`80GB` or `74.5 GiB` -> bytes. Raises UserError for a number without a unit of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B", text.strip())
    if found is None:
        raise UserError(f"{flag} {text}: want a size with its unit, such as 80GB or 74.5GiB")
    number, prefix, binary = found.groups()
    steps = " kMGT".index(prefix or " ")
    return float(number) * (2.0 ** (10 * steps) if binary else 10.0 ** (3 * steps))


def _sentences(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"--data {found['store']}: {found['why']}"
    yield from found["problems"]
    yield f"{found['flops_per_clip'] / 1e9:.2f} GFLOP a clip"
    if found["hours"] is not None:
        parts, once = (
            ", ".join(f"{name} {_duration(taken)}" for name, taken in found[key].items()) for key in ("epoch", "once")
        )
        yield f"rates: {found['basis']}"
        yield f"an epoch: {_duration(found['epoch_seconds'])}, {1 / found['epoch_seconds']:.3g} epochs/s ({parts})"
        yield f"the run: {found['hours']:,.2f} hours, of which once: {once or 'nothing'}"
    if found["unknown"]:
        yield f"unknown: {'; '.join(found['unknown'])}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds:,.3g} s"
