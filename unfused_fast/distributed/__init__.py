"""Distributed data-parallel training.

In: the environment of torchrun, srun or our launcher. Out: `Ranks`: sums, gathers, shared flags; BatchNorm, dropout and
gradients over all ranks. Read first: ranks.py.
"""

from unfused_fast.distributed.ranks import ALONE, RankLost, Ranks, in_words
from unfused_fast.distributed.shared_layers import first_buffers, first_state, gather_rows, share_layers, sum_gradients
from unfused_fast.distributed.shares import WHOLE, Share
