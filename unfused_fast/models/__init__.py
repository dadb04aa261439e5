"""Log-mels to embeddings; padding is never seen.

In: log-mels (B, 1, F, T). Out: networks: encoders, projection heads, heads of distillation.
Read first: audiontt.py.
"""

from unfused_fast.models.audiontt import (
    AudioNTT,
    DistillNetwork,
    DistillOutput,
    FinetuneNetwork,
    Pool,
    PretrainNetwork,
    Projector,
    block_features,
    block_sizes,
    build_encoder,
    build_projector,
    layer_shapes,
    layer_steps,
    pool_time,
)
from unfused_fast.models.cost import Cost, clip_cost, encoder_cost, operations, step_bytes
from unfused_fast.models.efficientnet import EfficientNetB0
from unfused_fast.models.encoder import EncoderOutput
from unfused_fast.models.momentum import KeyQueue, follow, follower
