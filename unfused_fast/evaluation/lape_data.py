"""Where a task's data lie below a folder: a shard set, or the published layout, which is packed first."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unfused_fast.config import Task
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.datasets import DATASETS, dataset_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import MANIFEST, Manifest, ShardSet, open_shards, read_manifest
from unfused_fast.shards.sources.branch import Branch
from unfused_fast.shards.sources.trees import folder_of

FOLDERS = {
    "speechcommands-v1": ("speech_commands_v0.01",),
    "speechcommands-v2": ("speech_commands_v0.02",),
    "librispeech-speaker": ("LibriSpeech",),
    "voxceleb1": ("VoxCeleb1", "vox1"),
    "voxforge": ("VoxForge",),
    "iemocap": ("IEMOCAP_full_release", "IEMOCAP"),
    "nsynth": ("NSynth",),
    "tut2018": ("TUT-urban-acoustic-scenes-2018-development",),
    "urbansound8k": ("UrbanSound8K",),
    "birdsong": ("BirdSong",),
}
"""Adapter -> names of its folder, besides the task's and the adapter's: what archives unpack to, or people write."""
PARTS = {"nsynth": "nsynth-train", "birdsong": "ff1010bird", "voxceleb1": "iden_split.txt"}
"""Adapter -> what lies in the folder that is searched, where that folder is itself the root of the data set."""
PIECE_SECONDS = 30.0
"""Longer files are cut into equal pieces, each a clip. Ours: whole for LibriSpeech (24.5 s at most) and nearly all of
VoxCeleb1; a batch of whole clips of 30 s fits in memory.
"""


@dataclass(frozen=True)
class Place:
    """Where a task's data were found."""

    path: Path
    packed: bool
    """A shard set, as opposed to the published layout."""


def find(task: Task, data: Path) -> Place | None:
    """The first there is: a folder of the task's name; a shard set that this task's adapter made, whatever its name; a
    folder of the adapter's or the publisher's name; `data` itself; None for none.
    """
    names = (task.dataset, *FOLDERS[task.dataset])
    made = [path.parent for path in sorted(data.glob(f"*/{MANIFEST}")) if _made_by(path.parent, task)]
    for folder in (data / task.name, *made, *(data / name for name in names)):
        if folder.is_dir():
            return Place(folder, (folder / MANIFEST).is_file())
    part = PARTS.get(task.dataset)
    return Place(data, False) if part is not None and (data / part).exists() else None


def shards_of(task: Task, place: Place, out: Path, workers: int | None) -> ShardSet:
    """The task's shard set; the published layout is packed to `out`, once, and goes on there after a kill.

    Raises UserError for a set of another data set or other options, for a folder of another layout, and for a set at
    `out` that was packed from other files than the folder has now.
    """
    if place.packed:
        manifest = read_manifest(place.path)
        if manifest.dataset is not None and not _made_for(manifest, task):
            raise UserError(
                f"{place.path}: packed as {manifest.dataset['name']} {_text(manifest.dataset['options'])}, but "
                f"{task.name} wants {task.dataset} {_text(task.options)}; pack it again with: {_command(task)}"
            )
        return open_shards(place.path)
    root = folder_of(place.path, say=console.print)
    found = dataset_rows(task.dataset, root, task.options)
    if isinstance(root, Branch) and (refused := root.tree.refused):
        console.print(f"{task.name}: {len(refused)} files in archives are not read, such as {refused[0][0]}")
    for note in found.notes:
        console.print(f"{task.name}: {note}")
    there = (out / MANIFEST).is_file()
    try:
        packed = pack(
            found.rows,
            out,
            max_seconds=PIECE_SECONDS,
            workers=workers,
            resume=True,
            dataset={"name": task.dataset, "options": dict(task.options)},
            files=found.files,
            statistics=log_mel_statistics,
        )
    except UserError as error:
        if not there:
            raise
        reason = str(error).removeprefix(f"{out}: ").split(";")[0]
        raise UserError(f"{out}: {reason}; delete it to pack {place.path} again") from error
    if not there:
        console.print(f"{task.name}: packed {packed.packed} clips in {packed.wall_seconds:.0f} s")
    return packed.shard_set


def where_to_get(task: Task) -> dict[str, str]:
    """What a user needs to know to have the data set: source, licence, layout, command."""
    dataset = DATASETS[task.dataset]
    return {
        "source": dataset.source,
        "licence": dataset.licence,
        "layout": dataset.layout,
        "folder": " or ".join((task.dataset, *FOLDERS[task.dataset])),
    }


def _made_by(folder: Path, task: Task) -> bool:
    with suppress(UserError):  # a set that cannot be read is refused where its name asks for it
        return _made_for(read_manifest(folder), task)
    return False


def _made_for(manifest: Manifest, task: Task) -> bool:
    """Whether a set was made by the task's adapter with the options that make the task; others may be anything, such as
    split=files of LibriSpeech.
    """
    made = manifest.dataset
    if made is None or made["name"] != task.dataset:
        return False
    options = {**DATASETS[task.dataset].chosen({}), **made["options"]}
    return all(options[key] == value for key, value in task.options.items())


def _command(task: Task) -> str:
    options = "".join(f" --option {key}={value}" for key, value in task.options.items())
    return f"unfused-fast shard --dataset {task.dataset} ROOT SHARDS{options}"


def _text(options: object) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else ""
