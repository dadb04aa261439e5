"""A stage to epochs, checkpoints and a run directory.

In: a stage: batches, a network, what a step does. Out: OUT with config.json, log.jsonl, checkpoints, result.json;
stopping, saving and resuming. Read first: loop.py, then run_directory.py.
"""

from unfused_fast.training.checkpoint import (
    KEPT,
    Position,
    collect,
    load_checkpoint,
    load_network,
    refuse_misfit,
    restore,
    save_checkpoint,
    to_host,
    write_json,
)
from unfused_fast.training.loop import (
    Progress,
    progress_of,
    run_epochs,
)
from unfused_fast.training.model_folder import (
    WEIGHTS,
    encoder_digest,
    read_model_folder,
    write_model_folder,
)
from unfused_fast.training.optim import (
    build_optimizer,
    learning_rate,
    set_rate,
)
from unfused_fast.training.options import (
    Interrupted,
    Options,
    autocast,
    compiled,
    full_precision,
    join,
    precision,
    prepare_for,
    quietly,
    resolve_amp,
    resolve_batch_size,
    resolve_device,
    say_unused_splits,
    seed_everything,
    train_clips,
)
from unfused_fast.training.plots import (
    plot_cluster_sizes,
    plot_confusion,
    plot_confusions,
    plot_curves,
    plot_errors,
    plot_log_mels,
)
from unfused_fast.training.profiling import (
    Profile,
)
from unfused_fast.training.progress import (
    PartTimer,
)
from unfused_fast.training.run_description import (
    config_digest,
    read_description,
)
from unfused_fast.training.run_directory import (
    Run,
)
from unfused_fast.training.run_together import (
    load_together,
    open_run,
    parts_of,
    train_loader,
)
from unfused_fast.training.save_every import (
    parse_save_every,
)

__all__ = [
    "KEPT",
    "WEIGHTS",
    "Interrupted",
    "Options",
    "PartTimer",
    "Position",
    "Profile",
    "Progress",
    "Run",
    "autocast",
    "build_optimizer",
    "collect",
    "compiled",
    "config_digest",
    "encoder_digest",
    "full_precision",
    "join",
    "learning_rate",
    "load_checkpoint",
    "load_network",
    "load_together",
    "open_run",
    "parse_save_every",
    "parts_of",
    "plot_cluster_sizes",
    "plot_confusion",
    "plot_confusions",
    "plot_curves",
    "plot_errors",
    "plot_log_mels",
    "precision",
    "prepare_for",
    "progress_of",
    "quietly",
    "read_description",
    "read_model_folder",
    "refuse_misfit",
    "resolve_amp",
    "resolve_batch_size",
    "resolve_device",
    "restore",
    "run_epochs",
    "save_checkpoint",
    "say_unused_splits",
    "seed_everything",
    "set_rate",
    "to_host",
    "train_clips",
    "train_loader",
    "write_json",
    "write_model_folder",
]
