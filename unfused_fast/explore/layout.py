"""Nearest neighbours, and a map in two dimensions.   N clips, D features, K neighbours."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.optional import importing

MapKind = Literal["umap", "pca"]
MAP_NEIGHBOURS = 15
"""Neighbours of a clip, itself among them, that the map keeps together. Source: umap.UMAP, n_neighbors."""
FEWEST = 4
"""Clips of a map."""
ROWS = 512
"""Rows whose similarities exist at once. Ours: 200 MB for 100,000 clips."""
GAP = 0.04
"""Longest empty stretch of an axis, of its extent without the outermost clips."""
SMALL = 64
"""Clips below which UMAP starts from random places. Ours: its spectral start wants many more clips than dimensions."""


@torch.no_grad()
def nearest(unit: Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(N, D) unit rows -> ids (N, K) of the most similar others, the nearest first, and cosines (N, K); exact.
    Computed where the rows are.

    K is `k`, or the number of other rows where there are fewer.
    """
    k = min(k, len(unit) - 1)
    ids, cosines = np.empty((len(unit), k), np.int32), np.empty((len(unit), k), np.float32)
    for start in range(0, len(unit), ROWS):
        block = unit[start : start + ROWS] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        found = block.topk(k, dim=1)
        ids[start : start + ROWS], cosines[start : start + ROWS] = (
            found.indices.cpu().numpy(),
            found.values.cpu().numpy(),
        )
    return ids, cosines


def map_of(unit: Tensor, kind: MapKind, ids: NDArray[np.int32], cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) unit rows and their neighbours (N, K) -> (N, 2) places around 0, most of them within 1.

    `umap` keeps neighbours together, from the exact neighbours given, with a fixed seed; `pca` is the plane of largest
    variance. Raises UserError: fewer than FEWEST clips, or UMAP is not installed.
    """
    if len(unit) < FEWEST:
        raise UserError(f"{counted(len(unit), 'clip')}, but a map needs {FEWEST} or more; give a larger set")
    if kind == "pca":
        from sklearn.decomposition import PCA

        places = PCA(2, random_state=0).fit_transform(unit.numpy())
    else:
        places = with_gaps_closed(_umap(unit.numpy(), ids, cosines))
    places = places - places.mean(axis=0)
    places = places @ np.linalg.svd(places, full_matrices=False)[2].T  # the longer side across
    places = places - np.median(places, axis=0)
    scale = np.quantile(np.abs(places), 0.995)
    result: NDArray[np.float32] = (places / (scale if scale > 0 else 1.0)).astype(np.float32)
    return result


def with_gaps_closed(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 2) -> the map with stretches of an axis that hold no clip shortened to GAP of its extent.

    Ours: how far UMAP puts islands away means nothing, and far ones would leave the rest a small part of the page. What
    is connected keeps its shape, and islands keep their order.
    """
    columns = []
    for values in places.T:
        order = np.argsort(values, kind="stable")
        low, high = np.quantile(values, [0.005, 0.995])
        steps = np.minimum(np.diff(values[order], prepend=values[order[0]]), GAP * max(high - low, 1e-12))
        column = np.empty(len(values), np.float32)
        column[order] = np.cumsum(steps)
        columns.append(column)
    return np.stack(columns, axis=1)


def _umap(rows: NDArray[np.float32], ids: NDArray[np.int32], cosines: NDArray[np.float32]) -> Any:
    with importing("umap", "UMAP", "a map", "pip install '.[explore]', or give --map pca"):
        import umap

    near = min(MAP_NEIGHBOURS, ids.shape[1] + 1)
    own = np.arange(len(rows), dtype=np.int32)[:, None]
    known = np.concatenate([own, ids], axis=1)[:, :near]
    far = np.concatenate([np.zeros_like(own, np.float32), np.maximum(0, 1 - cosines)], axis=1)[:, :near]
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is meant: one thread for a seed, no new points
            return umap.UMAP(
                n_neighbors=near,
                metric="cosine",
                min_dist=0.1,
                random_state=0,
                n_jobs=1,
                init="spectral" if len(rows) >= SMALL else "random",
                precomputed_knn=(known, far, None),
            ).fit_transform(rows)
    finally:
        torch.set_num_threads(threads)  # numba sets OpenMP's, and with them torch's: later bits would differ
