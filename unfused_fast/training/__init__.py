"""The training loop, checkpoints and the run directory of a stage.

In: a stage: batches, a network, what a step does. Out: OUT with config.json, log.jsonl, checkpoints, result.json;
stopping, saving and resuming. Read first: loop.py, then run_directory.py.
"""

from unfused_fast.training.checkpoint import KEPT, Position, load_checkpoint, misfitting, refuse_misfit, write_json
from unfused_fast.training.loop import Trainer
from unfused_fast.training.model_folder import (
    WEIGHTS,
    check_model_folder,
    encoder_digest,
    encoder_name,
    encoder_place,
    read_model_folder,
    to_half,
    write_model_folder,
)
from unfused_fast.training.optim import build_optimizer
from unfused_fast.training.options import (
    Options,
    Paused,
    autocast,
    compiled,
    full_precision,
    join,
    parse_save_every,
    precision,
    prepare_for,
    quietly,
    report_unused_splits,
    resolve_amp,
    resolve_batch_size,
    resolve_device,
    train_clips,
    train_loader,
)
from unfused_fast.training.plots import (
    draw,
    plot_cluster_sizes,
    plot_confusions,
    plot_curves,
    plot_errors,
    plot_log_mels,
    plot_scores,
)
from unfused_fast.training.progress import Profile
from unfused_fast.training.replacing import refuse_others, replaceable
from unfused_fast.training.run_directory import Run
from unfused_fast.training.run_record import config_digest, read_description, read_result, versions
from unfused_fast.training.trackers import parse_trackers
