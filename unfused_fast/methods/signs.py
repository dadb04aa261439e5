"""Early signs of a collapse: numbers of each step, whose means over an epoch are logged.

B clips in a batch, P size of a projection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.clustering import cluster_sizes
from unfused_fast.distributed import Ranks
from unfused_fast.methods.method import Log, Signs


class MeanSigns(Signs):
    """Means over the steps of an epoch, each number itself a sum over the clips of all ranks."""

    sums: Tensor
    steps: Tensor

    def __init__(self, ranks: Ranks, *names: str) -> None:
        super().__init__()
        self.ranks, self.names = ranks, names
        self.register_buffer("sums", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._step = list[Tensor]()

    def note(self, *shares: Tensor) -> None:
        """One number () a name: what this rank's clips of the batch, or of a part of it, add to that of all ranks."""
        self._step.append(torch.stack(shares).detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """The step's numbers count: the sum over ranks, the mean over parts."""
        self.sums += self.ranks.sum(torch.stack(self._step).mean(dim=0).double())
        self.steps += 1
        self._step = []

    def begin_epoch(self) -> None:
        self.sums.zero_()
        self.steps.zero_()

    def means(self) -> dict[str, float]:
        """Name -> mean over the steps since `begin_epoch`."""
        return dict(zip(self.names, (self.sums / self.steps.clamp(min=1)).tolist(), strict=True))


class ContrastSigns(MeanSigns):
    """Alignment, the mean squared distance of a clip's two views, and uniformity, the logarithm of the mean of
    exp(-2 squared distance) over pairs of clips, both at unit norm. Source: Wang and Isola, arXiv 2005.10242.

    Of views that are all the same alignment and uniformity are 0; of unit vectors everywhere 2 and about -4.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks, "alignment", "closeness")

    @torch.no_grad()
    def note_views(self, first: Tensor, second: Tensor, every: Tensor) -> None:
        """(n, P) both views of this rank's clips, (B, P) one of them of all ranks' clips, of any norm."""
        first, second, every = (normalize(rows, dim=1) for rows in (first, second, every))
        own = self.ranks.rows[1]
        rows, clips = every[own : own + len(first)], len(every)
        others = (4 * (rows @ every.T) - 4).exp().sum() - len(rows)  # without each clip beside itself
        distances = (first - second).square().sum()
        self.note(distances / clips, others / (clips * max(1, clips - 1)))

    def log(self) -> Log:
        means = self.means()
        closeness = max(means["closeness"], 1e-9)  # rounding may leave less than nothing
        return {"alignment": round(means["alignment"], 4), "uniformity": round(math.log(closeness), 4)}

    def summary(self, log: Log) -> str:
        return f"  alignment {log['alignment']:.3f}, uniformity {log['uniformity']:.2f} (both 0 collapsed)"


class CorrelationSigns(MeanSigns):
    """Of the cross-correlation of two views the mean of the diagonal, and of the absolute values beside it.

    The diagonal is 1 where the views agree, 0 where all clips give the same; beside it 0 is what is wanted, and 1 where
    all dimensions say the same.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks, "diagonal", "off_diagonal")

    @torch.no_grad()
    def note_correlations(self, correlations: Tensor) -> None:
        """(P, P) of all ranks' clips, of which each rank notes its share."""
        size, share = len(correlations), self.ranks.sizes[self.ranks.rank] / self.ranks.rows[0]
        diagonal, every = correlations.diagonal(), correlations.abs().sum()
        others = (every - diagonal.abs().sum()) / max(1, size * (size - 1))
        self.note(share * diagonal.mean(), share * others)

    def log(self) -> Log:
        return {name: round(value, 4) for name, value in self.means().items()}

    def summary(self, log: Log) -> str:
        return (
            f"  correlation of views {log['diagonal']:.3f} (0 collapsed), "
            f"of dimensions {log['off_diagonal']:.3f} (1 collapsed)"
        )


class DeviationSigns(MeanSigns):
    """Root mean square over dimensions of the deviation of unit outputs over a batch, times the root of P: 1 where they
    point everywhere, 0 where all are the same.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks, "shared_direction")

    @torch.no_grad()
    def note_outputs(self, outputs: Tensor) -> None:
        """(n, P) of this rank's clips, of any norm: notes |mean of unit outputs|^2, the mean cosine of all pairs."""
        units = normalize(outputs, dim=1)
        every = self.ranks.gather_parts(units, self.ranks.sizes)
        self.note(units.sum(dim=0) @ every.mean(dim=0) / len(every))

    def log(self) -> Log:
        return {"output_std": round(max(0.0, 1 - self.means()["shared_direction"]) ** 0.5, 4)}

    def summary(self, log: Log) -> str:
        return f"  std of outputs {log['output_std']:.3f} (1 spread, 0 collapsed)"


class UsageSigns(Signs):
    """How evenly K clusters are used in an epoch, by the mean of the clips' shares in them."""

    used: Tensor

    def __init__(self, ranks: Ranks, k: int, what: str) -> None:
        """`what` the method calls them."""
        super().__init__()
        self.ranks, self.what = ranks, what
        self.register_buffer("used", torch.zeros(k, dtype=torch.float64))
        self._step = list[Tensor]()

    def note_shares(self, shares: Tensor) -> None:
        """(n, K) of this rank's clips, rows sum to 1."""
        self._step.append(shares.detach().double().sum(dim=0))

    @torch.no_grad()
    def after_step(self) -> None:
        """The step's clips, of all ranks, count."""
        self.used += self.ranks.sum(torch.stack(self._step).sum(dim=0))
        self._step = []

    def begin_epoch(self) -> None:
        self.used.zero_()

    def log(self) -> Log:
        """exp(H) of the mean shares, K where all are used equally, 1 where one alone is."""
        return {"perplexity": round(cluster_sizes(self.used).perplexity, 2)}

    def summary(self, log: Log) -> str:
        return f"  {log['perplexity']:.1f} of {len(self.used)} {self.what} in use (1 collapsed)"
