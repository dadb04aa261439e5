"""`export` and `import`: encoders for other programs, and from them; part of the command line, cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Json, Overwrite
from unfused_fast.commands.output import print_json
from unfused_fast.errors import escaped


def export(
    run: Annotated[
        Path,
        typer.Argument(help="A run of train pretrain, distill or finetune, or a model folder.", show_default=False),
    ],
    hub: Annotated[
        Path | None,
        typer.Option(help="Folder to write: config.json, model.safetensors, README.md.", show_default=False),
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.", show_default=False)] = None,
    torch_export: Annotated[
        Path | None, typer.Option("--torch-export", help="File to write, for torch.export.load.", show_default=False)
    ] = None,
    given: Annotated[
        Literal["log-mel", "waveform"],
        typer.Option("--input", help="What the graph takes: log-mel (B, 1, F, T), or 16 kHz waveforms (B, samples)."),
    ] = "log-mel",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Hand a trained encoder on: as a folder that unfused_fast.load reads, as ONNX, or for torch.export.load."""
    if hub is None and onnx is None and torch_export is None:
        raise typer.BadParameter("nothing to write: give --hub FOLDER, --onnx FILE or --torch-export FILE")
    from unfused_fast.embedding import export_graph, export_hub

    made: list[dict[str, Any]] = []
    if hub is not None:
        made.append({"kind": "hub", **export_hub(run, hub, overwrite)})
    if onnx is not None:
        made.append({"kind": "onnx", **export_graph(run, onnx, "onnx", given, overwrite)})
    if torch_export is not None:
        made.append({"kind": "torch", **export_graph(run, torch_export, "torch", given, overwrite)})
    if as_json:
        print_json(made)
        return
    for facts in made:
        taken = f" from {facts['input']}" if "input" in facts else ""
        print(escaped(f"{facts['out']}: embeddings of {facts['embedding_size']} features{taken}"))


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A file of torch.save.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Model folder to write.", show_default=False)],
    layout: Annotated[
        Literal["byol-a", "decar-v2"], typer.Option(help="Layout of the checkpoint's tensor names.", show_default=False)
    ],
    mean: Annotated[float, typer.Option(help="Mean of the log-mels used in training.", show_default=False)],
    std: Annotated[float, typer.Option(help="Standard deviation of the same.", show_default=False)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a model folder of a public AudioNTT checkpoint; of the file, tensors are read and nothing is run."""
    from unfused_fast.embedding import import_checkpoint

    facts = import_checkpoint(checkpoint, folder, layout, mean, std, overwrite)
    if as_json:
        print_json(facts)
        return
    without = f"; left out: {', '.join(facts['left_out'])}" if facts["left_out"] else ""
    print(escaped(f"{folder}: an encoder of {facts['embedding_size']} features{without}"))
