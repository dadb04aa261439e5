"""What is trained: stage 1 (pretrain), stage 2 (distill), stage 3 (linear heads, or finetune), and all in turn.

In: a `Config`, a shard set, OUT. Out: a finished run directory and its result.
Read first: pretraining.py, then distillation.py.
"""

from unfused_fast.stages.all_stages import train_all
from unfused_fast.stages.cluster_report import describe_clusters
from unfused_fast.stages.distillation import distill, labels_digest
from unfused_fast.stages.features import FrozenEncoder, baseline_encoder, eval_features, load_encoder
from unfused_fast.stages.finetuning import finetune
from unfused_fast.stages.labels import LabelledClips, Rows, labelled_clips
from unfused_fast.stages.linear_heads import LinearHeads, linear, linear_round, round_features
from unfused_fast.stages.metrics import AveragePrecision, Floats, metric_of
from unfused_fast.stages.pretraining import pretrain
from unfused_fast.stages.protocol import Round, few_labels, holdout_input, permuted, report_test_in_training, rounds_of
