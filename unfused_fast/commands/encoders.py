"""`embed`, `export`, `import`: encoders for recordings and other programs; part of the command line, cli.py."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import TRAINED, Encoder, Json, Overwrite, ProcessFlags, with_flags
from unfused_fast.commands.options import refuse_several, run_options
from unfused_fast.commands.output import bar, show
from unfused_fast.config import SHIPPED
from unfused_fast.hub import is_hub
from unfused_fast.launch import set_handler
from unfused_fast.shards.packing.workers import start_server

SAME_SIGNAL_SECONDS = 0.3
"""Seconds within which a repeated signal counts as one, as that of a terminal which the launcher of --devices forwards
too."""


@with_flags(ProcessFlags)
def embed(
    audio: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, CSVs with a column path, tar, tar.gz and zip archives, URLs of these, or shard sets.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npz, .parquet, .zarr or .csv.", show_default=False)],
    encoder: Encoder = SHIPPED,
    frames: Annotated[
        bool, typer.Option("--frames", help="Write a row for each time step, before pooling, with its time.")
    ] = False,
    pool: Annotated[
        Literal["maxmean", "mean", "max"] | None,
        typer.Option(help="Pooling over time.", show_default="as the encoder was trained"),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Layers to concatenate, such as block3+encoder, or all (see: unfused-fast config eval.features)."
        ),
    ] = "encoder",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes for each device.", show_default="one a core")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume an unfinished OUT of the same files and options (the default). Needed only with --overwrite, "
            "to resume instead of starting again.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    *,
    flags: ProcessFlags,
) -> None:
    """Compute embeddings of recordings with a trained encoder.

    OUT has one row for each file, with its path and seconds. OUT.rejected.csv names the files that cannot be used, and
    why. After a stop the same command continues, also with another number of --devices.
    """
    if frames and pool is not None:
        raise typer.BadParameter("--frames writes steps before pooling, so there is no --pool; leave one of them out")
    flags.start_processes()
    start_server()
    from unfused_fast.console import console, counted
    from unfused_fast.embedding import check_place, embed_files, embed_rows, format_of, load, rejected_path

    format_of(out, frames)
    options, stopped = run_options(flags.device, timeout=flags.timeout), list[float]()
    ranks = options.ranks

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped and time.monotonic() - stopped[0] > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        stopped.append(time.monotonic())
        if len(stopped) > 1:
            return
        again = "; press Ctrl-C again to stop immediately" if number == signal.SIGINT else ""
        console.print(f"stopping after this batch{again}", style="yellow")

    with ranks, ExitStack() as stack:
        ranks.first(lambda: check_place(out, overwrite))
        embedder = ranks.every(lambda: load(encoder, str(options.device), pool, features))
        for number, before in set_handler(stop).items():
            stack.callback(signal.signal, number, before)
        with console.status("looking at what there is to embed"):
            rows = ranks.every(lambda: embed_rows(audio, console.print, out))
        facts = embed_files(
            embedder,
            rows,
            out,
            frames=frames,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            progress=stack.enter_context(bar("embedding")),
            stopping=lambda: bool(stopped),
            ranks=ranks,
        )
    if not ranks.leads:
        return
    files, made = counted(facts["files"], "file"), counted(facts["rows"], "row")
    rate = f"{facts['files_per_second']:g} files/s"
    if facts["files_per_second"] < 1:
        rate = f"{facts['times_real_time']:g} x real time"
    sentences = [
        f"{out}: {files}, {made} of {facts['embedding_size']} features by {encoder}, {rate}",
        *(f"  rejected {count}: {reason}" for reason, count in facts["rejected"].items()),
    ]
    if facts["rejected"]:
        sentences.append(f"  each one is named, with the reason and any remedy, in {rejected_path(out)}")
    show(facts, as_json, [], sentences)


def export(
    run: Annotated[str, typer.Argument(help=f"{TRAINED}.", show_default=False)],
    hub: Annotated[
        str | None,
        typer.Option(
            help="Model folder to write (config.json, model.safetensors, README.md), or hf://USER/NAME to upload it.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Whether a new hf:// repository is private.",
            show_default="as the account has it",
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Write the weights of --hub in 16 bit: half the size; embeddings change by less than 0.1 %."
        ),
    ] = False,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.", show_default=False)] = None,
    torch_export: Annotated[
        Path | None, typer.Option("--torch-export", help="File to write for torch.export.load.", show_default=False)
    ] = None,
    given: Annotated[
        Literal["log-mel", "waveform"] | None,
        typer.Option(
            "--input",
            help="Input of the graph: log-mels (B, 1, F, T), or 16 kHz waveforms (B, samples).",
            show_default="log-mel",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a trained encoder: a model folder, ONNX, or torch.export.

    unfused_fast.load and all commands read a model folder.
    """
    refuse_several()
    if half and hub is None:
        raise typer.BadParameter("--half needs --hub FOLDER; a graph keeps float32")
    if private is not None and not is_hub(hub or ""):
        raise typer.BadParameter("--private and --public are of --hub hf://USER/NAME")
    if hub is None and onnx is None and torch_export is None:
        raise typer.BadParameter("nothing to write: give --hub FOLDER, --onnx FILE or --torch-export FILE")
    if given is not None and onnx is None and torch_export is None:
        raise typer.BadParameter("--input is for --onnx and --torch-export: add one of them, or leave it out")
    from unfused_fast.embedding import check_places, export_graph, export_hub

    check_places(hub, onnx, torch_export, overwrite)
    made: list[dict[str, Any]] = []
    if hub is not None:
        made.append({"kind": "hub", **export_hub(run, hub, overwrite, half, private)})
    if onnx is not None:
        made.append({"kind": "onnx", **export_graph(run, onnx, "onnx", given or "log-mel", overwrite)})
    if torch_export is not None:
        made.append({"kind": "torch", **export_graph(run, torch_export, "torch", given or "log-mel", overwrite)})
    sentences = [
        f"{facts['out']}: embeddings of {facts['embedding_size']} features"
        + (f" from {facts['input']}" if "input" in facts else "")
        + (f"; {facts['commit']}" if "commit" in facts else "")
        for facts in made
    ]
    show(made, as_json, [], sentences)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, written by torch.save.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Model folder to write.", show_default=False)],
    layout: Annotated[
        Literal["byol-a", "decar-v2"], typer.Option(help="How the checkpoint names its tensors.", show_default=False)
    ],
    mean: Annotated[float, typer.Option(help="Mean of the log-mels used in training.", show_default=False)],
    std: Annotated[float, typer.Option(help="Standard deviation of these log-mels.", show_default=False)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a public AudioNTT checkpoint to a model folder.

    Only its tensors are read; no code in the file is run.
    """
    refuse_several()
    from unfused_fast.embedding import import_checkpoint

    facts = import_checkpoint(checkpoint, folder, layout, mean, std, overwrite)
    without = f"; left out: {', '.join(facts['left_out'])}" if facts["left_out"] else ""
    show(facts, as_json, [], [f"{folder}: an encoder of {facts['embedding_size']} features{without}"])
