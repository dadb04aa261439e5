"""Mean and standard deviation of a set's log-mels, for any front end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

from unfused_fast.config import FrontendConfig
from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.finish import STATISTICS_CLIPS, STATISTICS_SPLIT, stored_clips
from unfused_fast.shards.sets.table import ShardSet


def set_statistics(shards: ShardSet, frontend: FrontendConfig) -> Mapping[str, float] | None:
    """`mean`, `std` and `clips` by which log-mels of the set are normalised; None of a set packed without any.

    Those of the manifest for `byola`, for which the packer measured them; for another front end they are measured on
    the same clips, the first of the train split. Raises UserError for shards that cannot be read.
    """
    manifest = shards.manifest
    if frontend.kind == "byola" or STATISTICS_SPLIT not in manifest.splits:
        return manifest.log_mel
    tars = manifest.splits[STATISTICS_SPLIT].shards
    return _measured(shards.directory, tars, manifest.codec, manifest.digest, frontend)


@lru_cache(maxsize=16)
def _measured(
    folder: Path, tars: tuple[str, ...], codec: str, digest: str, frontend: FrontendConfig
) -> dict[str, float | int]:
    try:
        return log_mel_statistics(islice(stored_clips(folder, tars, codec), STATISTICS_CLIPS), frontend)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder}: a clip of split train cannot be read ({error}); see: unfused-fast check") from error
