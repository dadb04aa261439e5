"""Principal components: whitening before k-means, pseudo-labels from it, and the spread of the rows' directions.

N points on all ranks, n on this one, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unfused_fast.clustering.kmeans import KMeans, check_finite_rows, euclidean_kmeans
from unfused_fast.clustering.seeding import Points
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError

BLOCK_ROWS = 1 << 13
"""Rows that are converted to float64 at a time. Ours: 32 MB at D = 512."""


class RowSpread(NamedTuple):
    """The spread of the rows' directions; host numbers."""

    mean_direction: float
    """Norm of the mean of the unit rows: 0 when they point evenly in all directions, 1 when they are collinear."""
    effective_rank: float
    """exp of the entropy of the eigenvalues of the unit rows' covariance, as shares: D when all directions vary
    equally, 1 when only one does. Source: Roy and Vetterli 2007. Ours: of the covariance, since the second moment about
    0 includes the mean.
    """
    first_direction: float
    """Largest of these shares: the part of the variance in one direction."""


def resolve_pca_dim(wanted: int | Literal["auto"], clips: int) -> int:
    """Principal components for a set of `clips` clips: `auto` is 128, or one for every 16 clips where that is fewer."""
    return max(2, min(128, clips // 16)) if wanted == "auto" else wanted


def pca_whiten(points: Tensor, dim: int, whiten: bool = True, ranks: Ranks = ALONE) -> Tensor:
    """(n, D) -> (n, min(dim, rank)) principal components of the points of all `ranks`, of unit variance with `whiten`,
    then L2-normalised rows.

    Components with less than 1e-6 of the largest variance are dropped. Mean and covariance are summed in float64, block
    by block and over ranks, so that in addition to points and result only (D, D) and one block are in memory; where
    N <= D, from one SVD of all points. Source: DECAR section 3; authors (PCA to 128).

    Raises:
        UserError: all rows are equal, or not all finite.
    """
    held, mean = Points(points, ranks), _mean(torch.split(points, BLOCK_ROWS), ranks)
    if held.total <= held.features:
        every = ranks.gather_parts(points, held.sizes).double() - mean
        _, singular, directions = torch.linalg.svd(every, full_matrices=False)
        variances, directions = singular.square() / held.total, directions.T
    else:
        variances, directions = torch.linalg.eigh(_covariance(torch.split(points, BLOCK_ROWS), mean, ranks))
        variances, directions = variances.flip(0), directions.flip(1)
    # eigenvectors have no sign: on ranks of several kinds of machines they may differ
    variances, directions = ranks.from_first(variances.contiguous()), ranks.from_first(directions.contiguous())
    # a spread below 1e-6 of the mean's size is float32 rounding of equal rows
    kept = min(dim, int((variances > max(float(variances[0]) * 1e-6, float(mean.square().sum()) * 1e-12)).sum()))
    if not kept:
        raise UserError(
            "all clips have the same features, so they cannot be clustered; check that the encoder is trained and "
            "that its training did not diverge"
        )
    scaled = directions[:, :kept] / variances[:kept].sqrt() if whiten else directions[:, :kept]
    found = torch.empty(held.count, kept, device=points.device)
    for block, out in zip(torch.split(points, BLOCK_ROWS), torch.split(found, BLOCK_ROWS), strict=True):
        out.copy_(torch.nn.functional.normalize((block.double() - mean) @ scaled, dim=1))
    return found


def row_spread(rows: Tensor, ranks: Ranks = ALONE) -> RowSpread:
    """(n, D) rows, of any norm but 0 -> the spread of the directions of all ranks' rows; one host read. Nothing of size
    n is allocated.

    Raises:
        UserError: rows that are not all finite.
    """

    def unit() -> Iterator[Tensor]:
        return (torch.nn.functional.normalize(block.float(), dim=1) for block in torch.split(rows, BLOCK_ROWS))

    mean = _mean(unit(), ranks)
    eigenvalues = torch.linalg.eigvalsh(_covariance(unit(), mean, ranks)).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum().clamp(min=1e-300)
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return RowSpread(*torch.stack([mean.norm(), rank, shares[-1]]).tolist())


def _mean(blocks: Iterable[Tensor], ranks: Ranks) -> Tensor:
    """Blocks of rows (n, D), at least one -> (D,) float64 over all ranks. Raises UserError for rows that are not all
    finite.
    """
    count, total = 0, torch.zeros(())
    for block in blocks:
        sums = block.sum(dim=0, dtype=torch.float64)
        count, total = count + len(block), total.to(sums) + sums
    total = ranks.sum(total)
    check_finite_rows(total)  # float32 cannot overflow a float64 sum, so any number that is not finite is found
    return total / ranks.sum(torch.full_like(total[:1], count))


def _covariance(blocks: Iterable[Tensor], mean: Tensor, ranks: Ranks) -> Tensor:
    """Blocks of rows (n, D) and the mean over all ranks -> (D, D) float64 over all ranks."""
    count, covariance = 0, torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for block in blocks:
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
        count += len(block)
    return ranks.sum(covariance) / ranks.sum(torch.full_like(mean[:1], count))


def pseudo_label_kmeans(
    features: Tensor, k: int, *, pca_dim: int, whiten: bool, iterations: int, n_init: int, seed: int
) -> KMeans:
    """(N, D) teacher features -> pseudo-labels: PCA, whitening, L2, then k-means. `pca_dim` 0: L2 only. Source:
    authors.
    """
    points = (
        pca_whiten(features, pca_dim, whiten) if pca_dim else torch.nn.functional.normalize(features.float(), dim=1)
    )
    generator = torch.Generator(device=points.device).manual_seed(seed)
    return euclidean_kmeans(points, k, iterations=iterations, n_init=n_init, generator=generator)
