"""A run's encoder for other programs: a model folder, ONNX, torch.export.   B clips, F bins, T frames, D features."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unfused_fast.config import READ_BY, flatten
from unfused_fast.data import log_mel, unit_norm
from unfused_fast.embedding.embedder import Embedder, load
from unfused_fast.errors import UserError, cause
from unfused_fast.hub import hub_name, is_hub, push_folder
from unfused_fast.models import pool_time
from unfused_fast.optional import importing
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import (
    check_model_folder,
    config_digest,
    encoder_place,
    read_description,
    read_result,
    to_half,
    write_model_folder,
)

Input = Literal["log-mel", "waveform"]
OPSET = 18
"""ONNX operator set. Ours: 17 introduced the DFT that the waveform's spectrum needs; the exporter is tested with 18."""
_CARD_FIELDS = {
    "pretrain": ("method.name", "loss.instance", "cluster.algo", "cluster.k"),
    "distill": ("pseudo.feature", "pseudo.k", "distill.alpha", "distill.beta", "distill.init"),
    "finetune": ("eval.label_fraction", "eval.select"),
}
"""Settings that one stage reads and its card shows, in addition to those of all stages; of pre-training, those that the
method reads."""
_ORIGINS = {
    "pretrain": "pre-trained without labels by the method",
    "distill": "trained without labels by stage 2 of UnFuSeD (arXiv 2303.05668)",
    "finetune": "fine-tuned with labels",
}
"""What a stage does, on its card."""
_EVERY_CARD = ("optim.name", "optim.lr", "train.batch_size", "train.epochs", "train.seed")
_NO_RESULTS = ("stage", "run", "config_digest", "data_digest", "seed", "epochs", "k", "clips", "encoder")


class LogMelEncoder(nn.Module):
    """(B, 1, F, T) log-mel as front_end.log_mel gives it -> (B, D): normalisation, encoder, pooling over T frames."""

    def __init__(self, embedder: Embedder) -> None:
        """Takes ownership of the encoder, in the contiguous memory layout: channels last would fix the length in the
        graph.
        """
        super().__init__()
        self.encoder = embedder.encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.mean, self.std, self.pool = embedder.mean, embedder.std, embedder.pool

    def forward(self, log_mel: Tensor) -> Tensor:
        """See the class."""
        output = self.encoder((log_mel - self.mean) * (1.0 / self.std))
        return pool_time(output.frames.float(), None, self.pool)


class WaveformEncoder(nn.Module):
    """(B, samples) at 16 kHz, 1 sample or more -> (B, D). Clips shorter than a training crop are padded with silence,
    as in Embedder.
    """

    def __init__(self, embedder: Embedder) -> None:
        """As in LogMelEncoder."""
        super().__init__()
        self.inner, self.frontend = LogMelEncoder(embedder), embedder.config.frontend
        self.unit_norm, self.shortest = embedder.unit_norm, embedder.cutting.shortest

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        scaled = unit_norm(waveform) if self.unit_norm else waveform
        samples = scaled.shape[1]
        # from this form, unlike max(samples, shortest), torch.export infers that the length is at least `shortest`
        length = self.shortest + torch.sym_max(samples - self.shortest, 0)  # type: ignore[no-untyped-call]
        place = torch.arange(length, device=scaled.device)
        padded = torch.where(place < samples, scaled[:, place.clamp(max=samples - 1)], 0.0)
        made: Tensor = self.inner(log_mel(padded, self.frontend)[:, None])
        return made


def check_places(hub: str | None, onnx: Path | None, torch_export: Path | None, overwrite: bool) -> None:
    """Raises UserError, before anything is written, for a place that export_hub or export_graph would refuse, one that
    is named twice, or a missing package.
    """
    folder = None if hub is None or is_hub(hub) else Path(hub)
    places = [place for place in (folder, onnx, torch_export) if place is not None]
    for number, place in enumerate(places):
        if place.resolve() in [other.resolve() for other in places[:number]]:
            raise UserError(f"{place}: named for two exports; give each a path of its own")
    if folder is not None:
        check_model_folder(folder, overwrite)
    elif hub is not None:
        hub_name(hub)
    for file in (onnx, torch_export):
        if file is not None:
            _check_graph(file, file is onnx, overwrite)


def _check_graph(out: Path, is_onnx: bool, overwrite: bool) -> None:
    if out.exists() and (out.is_dir() or not overwrite):
        raise UserError(f"{out}: it exists; choose another path, or replace a file with --overwrite")
    if is_onnx:
        for package in ("onnx", "onnxscript"):
            with importing(package, package, "export --onnx", "pip install '.[export]'"):
                importlib.import_module(package)


def export_hub(
    run: str | Path, to: str, overwrite: bool = False, half: bool = False, private: bool | None = None
) -> dict[str, Any]:
    """Writes a model folder to the path `to`, or uploads it to hf://USER/NAME; with `half` weights are rounded to 16
    bit (to_half). Returns values to print.

    Raises UserError: no run at the path, or as save_folder or push.
    """
    embedder = load(run, device="cpu")
    if half:
        to_half(embedder.encoder)
    if is_hub(to):
        made = {"commit": push(embedder, to, None, private, half)}
    else:
        save_folder(embedder, Path(to), overwrite, half)
        made = {}
    return {"out": to, "digest": embedder.digest, "embedding_size": embedder.scene_embedding_size, **made}


def save_folder(
    embedder: Embedder, folder: Path, overwrite: bool = False, half: bool = False, name: str | None = None
) -> None:
    """Writes a model folder, which embedder.load reads: config.json, model.safetensors and a model card.

    config.json contains no path of this machine. `half`: weights that to_half has rounded, in 16 bit; `name`: where the
    card says that the model is, unless that is the folder.

    Raises UserError: what the encoder was loaded from is gone, or the folder cannot be written.
    """
    place = encoder_place(embedder.name)
    recorded = read_description(place)
    if recorded is None:
        raise UserError(f"{embedder.name}: the encoder was loaded from there, and it is no longer there; load it again")
    if embedder.config.data.norm in ("dataset", "running"):  # the final statistics, which only the checkpoint holds
        known = {"mean": embedder.mean, "std": embedder.std}
        recorded = {**recorded, "log_mel": {**(recorded["log_mel"] or {}), **known}}
    card = model_card(embedder, recorded, read_result(place) or {}, name or folder.name)
    write_model_folder(folder, embedder.encoder, {**recorded, "inputs": {}}, card, overwrite, half)


def push(embedder: Embedder, name: str, message: str | None, private: bool | None, half: bool = False) -> str:
    """Uploads a model folder to hf://USER/NAME; returns the commit's address. Raises as save_folder and push_folder."""
    wanted = hub_name(name)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        save_folder(embedder, made, half=half, name=f"hf://{wanted.repository}")
        return push_folder(made, name, message or f"Encoder {embedder.digest[:12]} by unfused-fast", private)


def export_graph(
    run: str | Path, out: Path, kind: Literal["onnx", "torch"], given: Input = "log-mel", overwrite: bool = False
) -> dict[str, Any]:
    """Writes one graph with any B and any T (or samples), weights inside: ONNX, or what torch.export.load reads.

    The input is named `log_mel` or `waveform`, the output `embedding`. For waveforms of any length it gives the same as
    Embedder (EfficientNet-B0: up to PIECE_FRAMES frames); a log-mel is not padded or cut. Returns values to print.

    Raises:
        UserError: no run at the path, `out` exists without `overwrite` or cannot be written, or a package is missing.
    """
    _check_graph(out, kind == "onnx", overwrite)
    embedder = load(run, device="cpu")
    shortest, digest = embedder.cutting.shortest, embedder.digest
    stride = embedder.cutting.stride
    if given == "log-mel":
        module: nn.Module = LogMelEncoder(embedder)
        example = torch.zeros(2, 1, embedder.config.frontend.n_mels, embedder.cutting.frames(shortest))
        sizes: dict[int, Any] = {0: torch.export.Dim("clips"), 3: torch.export.Dim("frames", min=2 * stride)}
    else:
        module, example = WaveformEncoder(embedder), torch.zeros(2, shortest + 160)
        sizes = {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=1)}
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=(sizes,), strict=False)
    name = given.replace("-", "_")

    if kind == "torch":
        buffer = io.BytesIO()  # on a full disk torch's own writer aborts the program
        torch.export.save(program, buffer)
        data = buffer.getvalue()
    else:
        with _without_foreign_warnings():
            made = torch.onnx.export(
                program, opset_version=OPSET, input_names=[name], output_names=["embedding"], verbose=False
            )
        assert made is not None
        made.model.metadata_props.update({"encoder_digest": digest, "pool": embedder.pool, "sample_rate": "16000"})
        data = made.model_proto.SerializeToString()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, data)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); free space, or choose another path") from error
    facts = {"out": str(out), "input": name, "digest": digest, "embedding_size": embedder.scene_embedding_size}
    return {**facts, "bytes": len(data)}


@contextmanager
def _without_foreign_warnings() -> Iterator[None]:
    """Around torch.onnx.export, of two that say nothing about the encoder."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        registry.removeFilter(other)


def model_card(embedder: Embedder, recorded: Mapping[str, Any], result: Mapping[str, Any], title: str) -> str:
    """README.md of a model folder, only from records of the run."""
    values = flatten(embedder.config) | recorded["config"]  # an earlier version's run may lack fields
    stage, norm, method = recorded["stage"], values["data.norm"], values["method.name"]
    log_mel = recorded["log_mel"] if norm in ("dataset", "running") else None
    facts = {
        "stage": stage,
        "encoder": values["model.encoder"],
        "parameters": f"{sum(parameter.numel() for parameter in embedder.encoder.parameters()):,}",
        "embedding size": embedder.scene_embedding_size,
        "pooling over time": embedder.pool,
        "input": "16 kHz, one channel",
        "waveform normalisation": "divided by the L2 norm of the clip" if embedder.unit_norm else "none",
        "log-mel normalisation": "none" if log_mel is None else f"mean {log_mel['mean']}, std {log_mel['std']}",
        "training data (digest of the shard set)": recorded["shards"],
        "settings (digest)": config_digest(recorded["config"]),
        "encoder (digest)": embedder.digest,
        "written by": ", ".join(f"{name} {version}" for name, version in recorded.get("versions", {}).items()),
    }
    origin, settings = f"An audio encoder, {stage} by unfused-fast.", "Its training settings are unknown."
    if stage in _CARD_FIELDS:  # another program's settings are not known
        by = f" {method}" if stage == "pretrain" else ""
        origin = f"An audio encoder, {_ORIGINS[stage]}{by}; exported from a run of unfused-fast."
        names = [name for name in _CARD_FIELDS[stage] if stage != "pretrain" or method in READ_BY.get(name, (method,))]
        fields = {name: values[name] for name in (*names, *_EVERY_CARD)}
        settings = f"{_table('field', fields)}\n\nAll of them are in `config.json`."
    measured = _numbers(result)
    return f"""---
library_name: unfused-fast
pipeline_tag: feature-extraction
tags: [audio, self-supervised-learning, audio-embeddings]{_model_index(stage, result, title)}
---

# {title.removeprefix("hf://")}

{origin}

{_table("what", facts)}

## Settings

{settings}

## Measured by the run

{_table("what", measured) if measured else "The run recorded no result."}

## Use

```python
import unfused_fast

encoder = unfused_fast.load("{title if is_hub(title) else "FOLDER"}")
embeddings = encoder.embed(waveform, sample_rate)  # (B, D)
```
"""


def _model_index(stage: str, result: Mapping[str, Any], title: str) -> str:
    """What the Hub shows beside a model: scores of a stage that has labels, in the card's metadata. Source: the Hub's
    documentation, Model Cards, Evaluation Results.
    """
    if not isinstance(result.get("valid"), int | float):
        return ""
    metrics = [
        {
            "type": str(result.get("metric", "accuracy")).lower(),
            "name": f"{result.get('metric')}, {split}",
            "value": score,
        }
        for split in ("valid", "test")
        if (score := result.get(split)) is not None
    ]
    task = {"type": "audio-classification", "name": f"labels of the set, train {stage}"}
    data = {"type": str(result.get("task", "unknown")), "name": str(result.get("task", "unknown"))}
    index = [{"name": title.rpartition("/")[2], "results": [{"task": task, "dataset": data, "metrics": metrics}]}]
    return "\nmodel-index: " + json.dumps(index)  # JSON is YAML


def _table(left: str, rows: Mapping[str, Any]) -> str:
    return "\n".join([f"| {left} | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _numbers(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a result, nested ones by dotted name."""
    found = dict[str, float]()
    for name, value in result.items():
        if isinstance(value, Mapping) and name not in _NO_RESULTS:
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + name not in _NO_RESULTS:
            found[prefix + name] = value
    return found
