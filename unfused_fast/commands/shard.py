"""`shard` and `merge`: audio -> shard sets."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Json, Overwrite
from unfused_fast.commands.options import pairs, refuse_several
from unfused_fast.commands.output import bar, next_command, print_json, show
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.workers import start_server
from unfused_fast.shards.sources.location import LARGEST_DEFLATED_GB, display_name, is_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unfused_fast.shards.datasets.dataset import Discovery
    from unfused_fast.shards.packing.finish import PackResult

PackResume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep a finished OUT if its sources have the same names and its options are the same. An unfinished OUT "
        "is resumed without this flag too, unless --overwrite is given.",
    ),
]


def shard(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder of audio (at any depth; tar, tar.gz and zip archives in it are read without unpacking), an "
            "archive, a CSV with columns path[,label or labels,split,group,fold], a URL of one of these, a folder that "
            "the datasets library saved, or hf://datasets/NAME.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Argument(
            help="The shard set to write: a folder, or a URL (s3://, gs://). Shards for a URL are made in "
            "UNFUSED_CACHE or ~/.cache/unfused-fast, and each is uploaded when it is complete.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Read SOURCE as this data set, in the layout of its publisher (see --list).")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="An option of the data set, as key=value. For a set of the datasets library: audio, label, group, "
            "config. Repeatable.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the data sets that --dataset takes, and stop.")] = False,
    labels_from_folders: Annotated[
        bool,
        typer.Option(
            "--labels-from-folders",
            help="Take labels from the names of the top folders, or of the folders in train, valid and test.",
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split a source that has no splits: percentages of train, valid and test (70/10/20), or of train and "
            "test (80/20). Groups stay whole, and labels keep their shares; --seed decides the draw.",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        Literal["wav", "flac"], typer.Option(help="wav is faster to decode; flac takes less disk.")
    ] = "wav",
    max_seconds: Annotated[
        float, typer.Option(help="Cut files more than 5 % longer than this into equal pieces.")
    ] = 10.0,
    min_seconds: Annotated[float, typer.Option(help="Reject shorter files.")] = 0.1,
    max_file_hours: Annotated[float, typer.Option(help="Reject longer files.")] = 24.0,
    max_member_gb: Annotated[
        float,
        typer.Option(
            "--max-member-gb",
            help="Reject a compressed member of a zip archive that unpacks to more than this. tar and tar.gz "
            "archives and uncompressed zips are read in parts, so they have no such limit.",
        ),
    ] = LARGEST_DEFLATED_GB,
    seed: Annotated[int, typer.Option(help="Random seed of the shuffle and of --split.")] = 0,
    part: Annotated[
        str | None, typer.Option(help="i/n: pack the i-th of n parts to OUT, for `unfused-fast merge`.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: pack on the Ray cluster at RAY_ADDRESS; its nodes must share the storage of SOURCE and OUT."
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes; the result does not depend on it.", show_default="one a core"),
    ] = None,
    resume: PackResume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pack audio files into a shard set.

    A shard set is WebDataset tars of 16 kHz mono clips with DALI indexes, a table of clips and a manifest. After a stop
    at any moment the same command continues.
    """
    if list_:
        from unfused_fast.shards.datasets import described, described_as_text

        if as_json:
            print_json(described())
        else:
            typer.echo(described_as_text())
        return
    if source is None or out is None:
        lacking = "SOURCE and OUT" if source is None else "OUT"
        raise typer.BadParameter(f"missing {lacking}: unfused-fast shard SOURCE OUT; only --list works without them")
    refuse_several(part is None)  # a job may give each of its tasks a part
    if engine == "local":
        start_server()
    from unfused_fast.console import console
    from unfused_fast.mel import log_mel_statistics
    from unfused_fast.shards.packing.options import PackOptions
    from unfused_fast.shards.packing.pack import pack
    from unfused_fast.shards.packing.upload import part_folder
    from unfused_fast.shards.sources.splits import parsed_shares, with_shares

    shares, share = None if split is None else parsed_shares(split), None if part is None else _part(part)
    asked: dict[str, Any] = {"codec": codec, "max_seconds": max_seconds, "min_seconds": min_seconds, "seed": seed}
    asked["max_file_hours"] = max_file_hours
    PackOptions(**asked)  # refuses them before the source is listed, which may take minutes
    if engine == "ray" and (share is not None or workers is not None):
        flag = "--part" if share else "--workers"
        raise UserError(f"{flag} with --engine ray: the cluster divides the work itself; leave it out")
    with ExitStack() as stack:
        pool = work = None
        if engine == "ray":  # what the nodes need to read archives has to be where they see it
            shared = part_folder(out).absolute().parent
            shared.mkdir(parents=True, exist_ok=True)
            work = Path(stack.enter_context(TemporaryDirectory(prefix=".unfused-fast-", dir=shared)))
        set_options = pairs(options, "--option", "key=value, see: unfused-fast shard --list")
        found, about = _found(source, dataset, set_options, labels_from_folders, max_member_gb, work)
        rows = found.rows
        if shares is not None:
            rows, made = with_shares(rows, shares, seed)
            console.print(f"--split {split}: {made}")
        if work is not None:
            from unfused_fast.shards.packing.ray_engine import RayWorkers

            seen = [work.parent] if is_url(source) else [work.parent, Path(source)]
            pool = stack.enter_context(closing(RayWorkers(seen)))
        packed = pack(
            rows,
            out,
            **asked,
            part=share,
            workers=workers,
            pool=pool,
            overwrite=overwrite,
            resume=resume,
            dataset=about,
            files=found.files,
            statistics=log_mel_statistics,
            progress=stack.enter_context(bar("packing")),
        )
    _print_packed(packed, display_name(out), as_json, part)


def merge(
    places: Annotated[
        list[str],
        typer.Argument(metavar="PART... OUT", help="All parts of a set, then the set to write: a folder or a URL."),
    ],
    resume: PackResume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Merge the parts that `shard --part i/n` packed into one shard set.

    It has the same bytes as a set packed on one machine.
    """
    if len(places) < 2:
        raise typer.BadParameter("missing OUT: unfused-fast merge PART... OUT")
    refuse_several()
    from unfused_fast.mel import log_mel_statistics
    from unfused_fast.shards.packing.merge import merge as merge_parts

    *parts, out = places
    with bar("merging") as advance:
        merged = merge_parts(
            parts, out, overwrite=overwrite, resume=resume, statistics=log_mel_statistics, progress=advance
        )
    _print_packed(merged, display_name(out), as_json)


def _part(given: str) -> tuple[int, int]:
    number, slash, count = given.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part {given}: want i/n, with i from 1 to n, for example --part 3/8")
    return int(number), int(count)


def _print_packed(packed: PackResult, out: str, as_json: bool, part: str | None = None) -> None:
    """Args: part: only this part of the set is packed, as i/n."""
    from unfused_fast.console import counted
    from unfused_fast.shards.sets.remarks import remarks

    manifest = packed.shard_set.manifest
    notes = [] if part else remarks(packed.shard_set)
    splits = {name: split.clips for name, split in manifest.splits.items()}
    seconds = sum(split.seconds for split in manifest.splits.values())
    summary = {
        "out": out,
        "part": part,
        "clips": packed.packed,
        "splits": splits,
        "labels": len(manifest.label_names),
        "rejected": packed.rejected,
        "audio_seconds": round(seconds, 1),
        "bytes": packed.shard_bytes,
        "shards": packed.shards,
        "shards_made": packed.shards_made,
        "seconds": round(packed.wall_seconds, 2),
        "clips_per_second": round(packed.packed / packed.wall_seconds, 1),
        "digest": manifest.digest,
        "notes": notes,
    }
    lines = [
        f"{out}: {f'part {part}: ' if part else ''}{counted(packed.packed, 'clip')} "
        f"({', '.join(f'{count} {name}' for name, count in splits.items())}), "
        f"{counted(len(manifest.label_names), 'label')}, {seconds / 60:.1f} minutes, "
        f"{packed.shard_bytes / 1e6:.1f} MB in {packed.wall_seconds:.1f} s"
    ]
    if packed.shards_made < packed.shards:
        lines.append(f"  {packed.shards - packed.shards_made} of {packed.shards} shards were there already")
    lines += [f"  {note}" for note in notes]
    lines += [f"  rejected {count}: {reason}" for reason, count in packed.rejected.items()]
    if part and not packed.shards:
        lines.append("  no shard is in this part: there are more parts than shards, or none of its files is usable")
    if packed.rejected and not part:
        lines.append(f"  each one is named, with the reason and any remedy, in {out.rstrip('/')}/rejected.csv")
    following = next_command("explore", out, "--out", "PAGE", "--serve")
    lines.append("when all parts are packed: unfused-fast merge PART... OUT" if part else following)
    show(summary, as_json, [], lines)


def _found(
    source: str,
    dataset: str | None,
    options: Mapping[str, str],
    labels_from_folders: bool,
    max_member_gb: float,
    work: Path | None,
) -> tuple[Discovery, dict[str, Any] | None]:
    """What is to be packed, and what the manifest says of the data set; notes go to the screen."""
    from unfused_fast.console import console
    from unfused_fast.shards.datasets import CSV, DATASETS, FOLDER, dataset_rows
    from unfused_fast.shards.datasets.dataset import PATH, Discovery
    from unfused_fast.shards.sources.listed_path import folder_of
    from unfused_fast.shards.sources.source_rows import source_rows

    if not 0 < max_member_gb < math.inf:
        raise UserError(
            f"--max-member-gb {max_member_gb:g}, but it must be a finite size above 0; leave it out for the default"
        )
    if is_url(source) and dataset in (CSV.name, FOLDER.name):
        raise UserError(
            f"{display_name(source)}: what is behind a URL is read without --dataset {dataset}; leave that out"
        )
    largest = round(max_member_gb * 1e9)
    with console.status("looking at what there is to pack"):
        if dataset is None:
            rows = source_rows(
                source,
                labels_from_folders=labels_from_folders,
                work=work,
                largest=largest,
                note=console.print,
                choice=options,
            )
            return Discovery(rows), None
        if labels_from_folders:
            raise UserError(
                f"--labels-from-folders with --dataset {dataset}: the data set has its own labels; leave it out"
            )
        plain = DATASETS.get(dataset) in (None, CSV, FOLDER) or not (is_url(source) or Path(source).exists())
        root = Path(source) if plain else folder_of(source, work=work, largest=largest, note=console.print)
        found = dataset_rows(dataset, root, options)
    for note in found.notes:
        console.print(f"{dataset}: {note}")
    known = DATASETS[dataset].options  # a set holds no path of the machine that packed it
    told = {key: Path(value).name if PATH in known[key] else value for key, value in options.items()}
    return found, {"name": dataset, "options": told}
