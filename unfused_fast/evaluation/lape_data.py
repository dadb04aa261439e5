"""Finds a task's data in a folder: a shard set, or the published layout, which is packed first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from unfused_fast.config import TASKS, Task
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.datasets import DATASETS, dataset_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import MANIFEST, Manifest, ShardSet, open_shards, read_manifest
from unfused_fast.shards.sources.listed_path import folder_of

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
"""Adapter -> names of its folder, besides the task's and the adapter's: the names that archives unpack to, and common
ones."""
PARTS = {"nsynth": "nsynth-train", "birdsong": "ff1010bird", "voxceleb1": "iden_split.txt"}
"""Adapter -> a file or folder whose presence shows that the searched folder is itself the root of the data set."""
PIECE_SECONDS = 30.0
"""Longer files are cut into equal pieces, each a clip. Ours: whole for LibriSpeech (24.5 s at most) and nearly all of
VoxCeleb1; a batch of whole clips of 30 s fits in memory.
"""


def find(task: Task, data: Path) -> Path | None:
    """The first that exists: a folder of the task's name; a shard set that this task's adapter made, whatever its name;
    a folder of the adapter's or the publisher's name; `data` itself; None for none.
    """
    made = [path.parent for path in sorted(data.glob(f"*/{MANIFEST}")) if _made_by(path.parent, task)]
    names = (task.dataset, *FOLDERS[task.dataset])
    for folder in (data / task.name, *made, *(data / name for name in names)):
        if folder.is_dir():
            return folder
    part = PARTS.get(task.dataset)
    return data if part is not None and (data / part).exists() else None


def shards_of(task: Task, place: Path, out: Path, workers: int | None) -> ShardSet:
    """The shard set at `place`; or the published layout there, packed to `out` once, which resumes after a kill.

    Raises UserError for a set of another data set or other options, for a folder of another layout, and for a set at
    `out` that was packed from other files than the folder has now.
    """
    if (place / MANIFEST).is_file():
        manifest = read_manifest(place)
        if manifest.dataset is not None and not _made_for(manifest, task):
            options = "".join(f" --option {key}={value}" for key, value in task.options.items())
            raise UserError(
                f"{place}: packed as {manifest.dataset['name']} {_text(manifest.dataset['options'])}, but "
                f"{task.name} wants {task.dataset} {_text(task.options)}; pack it again with: unfused-fast shard "
                f"--dataset {task.dataset} ROOT SHARDS{options}"
            )
        return open_shards(place)
    root = folder_of(place, note=console.print)
    found = dataset_rows(task.dataset, root, task.options)
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
        raise UserError(f"{out}: {reason}; delete it to pack {place} again") from error
    if not there:
        console.print(f"{task.name}: packed {counted(packed.packed, 'clip')} in {packed.wall_seconds:.0f} s")
    return packed.shard_set


def task_of(shards: ShardSet) -> Task | None:
    """The papers' task that a set is, by the name of its folder or by the adapter and options that made it."""
    made = (task for task in TASKS.values() if _made_for(shards.manifest, task))
    return TASKS.get(shards.name) or next(made, None)


def where_to_get(task: Task) -> dict[str, str]:
    """What a user needs to know to get the data set."""
    dataset = DATASETS[task.dataset]
    folder = " or ".join((task.dataset, *FOLDERS[task.dataset]))
    return {"source": dataset.source, "licence": dataset.licence, "layout": dataset.layout, "folder": folder}


def _made_by(folder: Path, task: Task) -> bool:
    with suppress(UserError):  # an unreadable set is reported when its name is requested
        return _made_for(read_manifest(folder), task)
    return False


def _made_for(manifest: Manifest, task: Task) -> bool:
    """Whether a set was made by the task's adapter with the options that make the task; other options may have any
    value, such as split=files of LibriSpeech.
    """
    made = manifest.dataset
    if made is None or made["name"] != task.dataset:
        return False
    options = {**DATASETS[task.dataset].chosen({}), **made["options"]}
    return all(options[key] == value for key, value in task.options.items())


def _text(options: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())
