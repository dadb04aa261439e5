"""Shards to batches of log-mels and views: the same clips whatever the store, device or number of ranks.

In: a shard set and a `Config`. Out: batches of log-mels (B, 1, F, T) with their clip ids, and augmented views of them.
Read first: stream.py, then order.py.
"""

from unfused_fast.data.augment import Augmenter, final_statistics
from unfused_fast.data.crops import Window, eval_window
from unfused_fast.data.front_end import framed_log_mel, log_mel, set_statistics, unit_norm
from unfused_fast.data.mixup import time_means
from unfused_fast.data.randomness import bits, draws_of, exponential, key
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.store import choose, gigabytes, placed
from unfused_fast.data.stream import Batch, Batches, Loader
from unfused_fast.data.unreadable import fill_left_out, find_unreadable, left_out_input, skipped, stand_ins
from unfused_fast.data.waveforms import Waveform, check_batch, clips_16k
