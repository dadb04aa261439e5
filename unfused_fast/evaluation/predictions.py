"""predictions.parquet: what every head said of every test recording.   C classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unfused_fast.evaluation.measure import Measured
from unfused_fast.stages import LabelledClips


def write_predictions(path: Path, clips: LabelledClips, measured: Sequence[Measured]) -> None:
    """A row for each test recording, encoder, method, share of labels and repetition.

    Columns clip_id and key (of its first piece in the set), pieces (clips that it was cut into), fold, label, encoder,
    method, label_fraction, run, seed, prediction; of a multi-label set `labels` and `scores` (C,) in place of label and
    prediction.
    """
    tables, pieces = [], np.bincount(clips.recording_of)
    for found in measured:
        size = len(found.rows)
        columns: dict[str, Any] = {
            "clip_id": clips.clip_ids[found.rows],
            "key": [clips.keys[row] for row in found.rows],
            "pieces": pieces[clips.recording_of[found.rows]],
            "fold": pa.array([None if fold < 0 else fold for fold in clips.fold_of[found.rows].tolist()], pa.int32()),
            "encoder": [found.encoder] * size,
            "method": [found.method] * size,
            "label_fraction": [found.fraction] * size,
            "run": [found.run] * size,
            "seed": [found.seed] * size,
        }
        if clips.multi_label:
            columns["labels"] = [np.flatnonzero(truth).tolist() for truth in clips.targets[found.rows]]
            columns["scores"] = pa.array(list(found.scores), pa.list_(pa.float32()))
        else:
            columns["label"] = clips.targets[found.rows]
            columns["prediction"] = found.scores.argmax(axis=1)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")
