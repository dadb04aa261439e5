"""Rows -> a shard set, or a part of one: read headers, lay out shards, make them in any order, number and finish."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any

from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.packing.building import building
from unfused_fast.shards.packing.finish import Assembly, PackResult, Statistics, finished
from unfused_fast.shards.packing.making import make_shards, plan_set
from unfused_fast.shards.packing.options import Codec, PackOptions, request_of
from unfused_fast.shards.packing.upload import destination, part_folder
from unfused_fast.shards.packing.workers import Pool, Workers, worker_count
from unfused_fast.shards.sources.row import SourceRow


def pack(
    rows: Sequence[SourceRow],
    out: Path | str,
    *,
    codec: Codec = "wav",
    max_seconds: float = 10.0,
    min_seconds: float = 0.1,
    seed: int = 0,
    clips_per_shard: int | None = None,
    max_file_hours: float = 24.0,
    part: tuple[int, int] | None = None,
    workers: int | None = None,
    pool: Pool | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dataset: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    statistics: Statistics | None = None,
    progress: OnProgress = no_progress,
) -> PackResult:
    """Packs audio files into a shard set at `out`. The same rows and options give the same bytes for any `workers`.

    The set is made in the sibling folder OUT.partial and replaces OUT when it is complete. However this
    function ends, the same call resumes OUT.partial. Files that cannot be used are listed in rejected.csv; the pieces
    of a long file are checked one by one. For the options that determine the bytes see PackOptions.

    Args:
        out: a folder, or an fsspec URL (s3://, gs://): the set is made in the cache folder, each shard is uploaded as
            soon as all before it are made, and uses no disk space from then on; see upload.
        part: (i, n): pack the i-th of n shares of the set to a folder, for merge.merge(); i from 1. Each part reads the
            headers of all files and decodes its share.
        workers: processes; None: one per core; 0: none, and a crash of a decoder ends the program.
        pool: where the work is done instead.
        overwrite: replace the shard set at `out`, and delete what an unfinished run left (unless `resume`).
        resume: a set at `out` that this call would make again is kept, and its result returned.
        dataset: for the manifest.
        files: name -> text of what is written next to the shards.
        statistics: given the samples of the first training clips, (samples,) int16 each; what it returns becomes
            manifest.log_mel.
        progress: called with steps done, steps in all, rejections: up to the number of files while their headers are
            read, then from 0 up to the number of clips.

    Raises:
        UserError: an option out of range, nothing usable, a full disk, something at `out` that must not be replaced,
            or an unfinished set that was started with different options.
    """
    started, processes = time.perf_counter(), worker_count(workers)
    options = PackOptions(codec, max_seconds, min_seconds, seed, clips_per_shard, max_file_hours)
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset, part)
    folder, remote = destination(out) if part is None else (part_folder(out), None)
    if resume and (there := finished(folder, remote, request, started)) is not None:
        return there
    with ExitStack() as stack:
        journal = stack.enter_context(building(folder, request, overwrite, resume, remote))
        pool = pool or stack.enter_context(Workers(processes))
        plan, shards, contents = plan_set(pool, journal, rows, options, part, files, progress)
        assembly = Assembly(journal, contents, remote)
        made = make_shards(pool, plan, shards, assembly, options, remote is None, progress)
        return assembly.finish(folder, statistics, made, started)
