"""Shards to batches of log-mels and views: the same clips whatever the store, device or number of ranks.

In: a shard set and a `Config`. Out: batches of log-mels (B, 1, F, T) with their clip ids, and augmented views of them.
Read first: stream.py, then order.py.
"""

from unfused_fast.data.augment import Augmenter
from unfused_fast.data.batches import Batch, Batches
from unfused_fast.data.front_end import log_mel, unit_norm
from unfused_fast.data.memory import Free, free_memory, freed_memory_kept, pinned_bytes
from unfused_fast.data.normalisation import GIVEN, TENSOR, final_statistics
from unfused_fast.data.randomness import bits, exponential, key
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.skipped_clips import SkippedClips
from unfused_fast.data.statistics import set_statistics
from unfused_fast.data.store import choose, gigabytes, placed
from unfused_fast.data.stream import Loader, import_dali
from unfused_fast.data.waveforms import Waveform, check_batch, clips_16k
from unfused_fast.data.windows import Window, eval_window
