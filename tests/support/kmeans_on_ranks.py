"""k-means of rows that ranks share, against one process that has all; run by ranks.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.distributed.ranks import ALONE, Ranks

CUTS = {2: [0, 502, 1003], 4: [0, 17, 17, 640, 1003]}
"""Number of ranks -> the first row of each, and the end; one of four has none."""


def check_kmeans(ranks: Ranks) -> None:
    """The same bits from each start and by each treatment of empty clusters, whatever each rank's generator drew."""
    cuts = CUTS[ranks.world_size]
    own = slice(cuts[ranks.rank], cuts[ranks.rank + 1])
    for dtype in (torch.float32, torch.bfloat16):
        points = normalize(torch.randn(1003, 37, generator=torch.Generator().manual_seed(0)) + 0.3, dim=1).to(dtype)
        # twenty starts in one place and a copy of a row: empty clusters and exact ties
        given = torch.cat([points[:20].float(), points[:1].float().expand(20, -1)])
        starts: list[tuple[Any, Any]] = [("random", "keep"), ("kmeans++", "split"), (given, "reseed")]
        for init, empty in starts:
            alone, found = (
                spherical_kmeans(
                    points[part].clone(),
                    40,
                    iterations=6,
                    init=init,
                    empty=empty,
                    n_init=2,
                    generator=torch.Generator().manual_seed(5 + of.rank * 7),
                    ranks=of,
                    previous=torch.arange(1003)[part] % 40,
                )
                for part, of in ((slice(1003), ALONE), (own, ranks))
            )
            wanted = alone._replace(assignments=alone.assignments[own])
            assert all(map(torch.equal, found, wanted)), (empty, dtype)
