"""Stage 1: pre-training by deep clustering.   N clips of the train split, B clips in a batch, K clusters, P size of a
projection.

DECAR-v2, each epoch: cluster the memory bank (assignment phase), make the centroids the frozen prototypes, predict each
clip's cluster from one view while another view's projection goes to the bank (training phase). Source: paper section 3,
part 1. DECAR-v1 is the same loop by other settings (preset decar-v1): the bank is filled by a pass of its own, and a
linear layer re-made each epoch predicts clusters of PCA-whitened rows. Source: DECAR section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unfused_fast.clustering import resolve_backend
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import placed
from unfused_fast.distributed import in_words
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.pretraining_state import Pretraining
from unfused_fast.training import Options, Run, precision, run_epochs


def pretrain(config: Config, shards: ShardSet, out: Path, options: Options) -> dict[str, Any]:
    """Pre-trains on the train split of `shards` into run directory `out`; returns result.json's content.

    Raises UserError for what the user can mend, Interrupted after Ctrl-C (what was done is saved).
    """
    state = Pretraining(config, shards, options)
    spherical = config.cluster.algo == "spherical"
    dtype = torch.float32 if config.bank.dtype == "fp32" else torch.bfloat16
    backend = f" ({resolve_backend(config.cluster.backend, options.device, dtype)})" if spherical else ""
    with Run(out, "pretrain", config, shards, options) as run:
        if (finished := run.result()) is not None:
            return finished
        return _trained(state, run, backend)


def _trained(state: Pretraining, run: Run, backend: str) -> dict[str, Any]:
    config, options = state.config, state.options
    progress = state.load(run) if run.resumed else None
    state.loader = placed(state.stream, ranks=options.ranks)
    run.start()
    console.print(
        f"pretrain: {state.loader.clips} clips, batch {state.batch_size}, K {state.k or 'found'}, "
        f"{config.train.epochs} epochs, "
        f"{sum(p.numel() for p in state.network.encoder.parameters()):,} encoder parameters, on {options.device} in "
        f"{precision(config, options.device)}{in_words(options.ranks)}, clusters by {config.cluster.algo}{backend}"
    )
    with run.signals():
        trained = run_epochs(state, run, progress)
    facts = {"encoder": config.model.encoder, "clips": {"train": state.loader.clips}, "k": state.k}
    if options.ranks.leads:
        state.draw(run, trained["last_epoch"])
    return run.finish({**facts, "batch_size": state.batch_size, **trained, **state.loader.skipped.result()})
