"""The numbers of the data path: front end, crops, augmentation. Sources are abbreviated as in fields.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unfused_fast.config.bounds import ABOVE_0, AT_LEAST_1, Count, CountOrZero, Positive, PositiveOrZero, ShareBelow1

Store = Literal["auto", "stream", "resident", "pinned", "mmap"]

DECAR_WINDOW = 400
"""Samples of the window of `decar1`, 25 ms. Source: DECAR section 5."""


@dataclass(frozen=True)
class FrontendConfig:
    """Waveform to log-mel."""

    kind: Literal["byola", "decar1"] = "byola"
    """Window of n_fft, power, Slaney mel of area one, log(x + log_floor); or DECAR-v1's: window of 25 ms, magnitude,
    HTK mel of height one, clipped to [1e-5, 1e8], log. Source: authors, BYOL-A; DECAR section 5, its authors. Ours:
    `decar1` has its frames centred and its triangles straight over hertz, as `byola` and librosa.
    """
    sample_rate_hz: Literal[16000] = 16000
    """Rate of the shards' audio, in hertz. Source: DECAR; authors."""
    n_fft: Count = 1024
    """Length of the FFT and, in `byola`, of the periodic Hann window, in samples. Source: authors
    (librosa.stft(n_fft=1024)), BYOL-A.
    """
    hop_samples: Count = 160
    """Step from frame to frame, in samples (10 ms). Source: DECAR section 5."""
    n_mels: Count = 64
    """Mel bins. Source: DECAR section 5."""
    fmin_hz: PositiveOrZero = 60.0
    """Lower edge of the lowest mel filter, in hertz. Source: DECAR section 5."""
    fmax_hz: float = 7800.0
    """Upper edge of the highest mel filter, in hertz. Source: DECAR section 5."""
    log_floor: Positive = 1.1920929e-07
    """Added to the mel power before the logarithm, in `byola`. Source: authors (float32 eps)."""
    pad_mode: Literal["reflect", "constant"] = "reflect"
    """How a clip is padded at its edges: the clip reflected, or zeros. Source: librosa 0.8.1, pinned by LAPE (reflect);
    later librosa has zeros.
    """

    @property
    def window_samples(self) -> int:
        """Length of the Hann window, in samples."""
        return DECAR_WINDOW if self.kind == "decar1" else self.n_fft


@dataclass(frozen=True)
class DataConfig:
    """What of a clip one training view sees."""

    crop_seconds: Positive = 0.95
    """Length of a training crop, in seconds (96 frames). Source: authors (LAPE `length_wave`), BYOL-A; the authors'
    DECAR-v2 code has 0.98, their distillation code 12. `decar-v1` has 10, the whole clips of DECAR's section 4.
    """
    crop: Literal["random", "start"] = "random"
    """Place of the crop. Source: paper implies random; `start` is what the authors' DECAR-v2 code does by mistake."""
    norm: Literal["dataset", "running", "wave_l2", "none"] = "dataset"
    """Normalisation: log-mels by mean and standard deviation of the set's train split; by those of the crops trained on
    so far (data/augment.py); waveforms by the L2 norm of the whole clip, log-mels not at all; or neither. Ours:
    dataset, the authors' running norm without its drift. Source: authors (running; wave_l2 is their option `l2`).
    """

    store: Store = "auto"
    """How log-mels are stored: recomputed each epoch (stream), or once and held on the device (resident), in the host's
    memory, from which batches go by pinned buffers (pinned), or on disk (mmap). Ours: `auto` is the fastest store
    with room for the split.
    """
    partitions: Count = 8
    """Number of parts, of neighbouring clips, into which a split is divided. Each process holds the same number of
    them, so the number of processes must divide it. A batch takes clips of every part; it is the same on any number
    of processes, but not with another number of parts. Mixup partners are of the same part. Ours: for the 8 GPUs of
    a machine; for more, take a multiple of their number.
    """
    sampler: Literal["every_clip", "uniform_clusters"] = "every_clip"
    """Clips of an epoch of pre-training: each once, or as many draws, equally many from each cluster. Source: paper;
    DECAR section 3 (uniform over pseudo-labels).
    """


@dataclass(frozen=True)
class ViewsConfig:
    """How the two views of a clip are related."""

    same_crop: bool = True
    """All views augment one crop; false draws a crop for each. Source: authors."""
    local: CountOrZero = 0
    """Local views beside the whole ones (multi-crop), each a part of a view of its own. They learn to predict the
    targets of the whole views, never the other way round; `decar-v1` and `simclr` have none. In `decar-v2` they predict
    the clip's cluster, have no rows in the bank, and no part in `loss.instance`. Source: SwAV section 3.3, whose
    authors have 6 beside two whole ones, also for DeepCluster-v2.
    """
    local_seconds: Positive = 0.4
    """Length of a local view, in seconds. Ours: AudioNTT pools over time, so that one costs as much less as it is
    shorter; SwAV's are 96 pixels of 224.
    """


@dataclass(frozen=True)
class MixupConfig:
    """Log-mixup-exp with a FIFO memory of past inputs."""

    ratio: ShareBelow1 = 0.4
    """Mixing share drawn from U(0, ratio); 0 turns it off. Source: authors, BYOL-A."""
    memory: Count = 2048
    """Clips held by the FIFO memory, equally many of each of `data.partitions`. Source: authors, BYOL-A."""
    partner: Literal["any", "farthest"] = "any"
    """Which of them a clip is mixed with: any, or any of the cluster farthest from its own (k-mix), by the means over
    time of their log-mels. Source: authors, BYOL-A; SLICER, arXiv 2211.01519 (farthest).
    """

    def held(self, clips: int, partitions: int) -> int:
        """Clips that are held of each partition of a split of so many clips."""
        return max(1, min(self.memory, clips) // partitions)


@dataclass(frozen=True)
class RandomResizeCropConfig:
    """Random resize crop on a virtual canvas, bicubic, align_corners."""

    enabled: bool = True
    """Whether views are cropped and resized. Source: authors, BYOL-A."""
    canvas_time: Annotated[float, AT_LEAST_1] = 1.5
    """Canvas length as a multiple of the crop's frames. Source: authors, BYOL-A."""
    freq_scale: Annotated[tuple[float, float], ABOVE_0] = (0.6, 1.5)
    """Range of the crop's height as a multiple of the mel bins. Source: authors, BYOL-A."""
    time_scale: Annotated[tuple[float, float], ABOVE_0] = (0.6, 1.5)
    """Range of the crop's length as a multiple of the frames. Source: authors, BYOL-A."""


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Time warp, then time and frequency masks, drawn for each clip and view; masks are filled with the set's mean."""

    freq_masks: CountOrZero = 1
    """Masks along frequency. Ours: the paper names none, DECAR section 3 uses SpecAugment (2); 0 turns them off."""
    freq_width: CountOrZero = 8
    """Largest width of a frequency mask, in mel bins. Ours: an eighth of the 64 bins; DECAR's 30 was set for whole
    clips.
    """
    time_masks: CountOrZero = 1
    """Masks along time. Ours, as freq_masks."""
    warp: CountOrZero = 0
    """Largest shift W of the time warp, in frames, before the masks; 0 for none. Source: authors of DECAR (5, of whole
    clips); arXiv 1904.08779 section 2. Ours: off, as in BYOL-A.
    """
    time_width: CountOrZero = 12
    """Largest width of a time mask, in frames. Ours: an eighth of the 96 frames; DECAR's 40 was set for whole clips."""

    @property
    def masks(self) -> int:
        """Masks drawn for one view."""
        return (self.freq_masks if self.freq_width else 0) + (self.time_masks if self.time_width else 0)


@dataclass(frozen=True)
class AugmentConfig:
    """What makes two views of one clip differ."""

    fader: PositiveOrZero = 0.0
    """Random linear fader: a straight line over time is added to a view, its two ends drawn from U(-fader, fader), in
    the unit of normalised log-mels; 0 for none. Source: BYOL-A v2's authors (1.0), arXiv 2204.07402.
    """
    noise: ShareBelow1 = 0.0
    """Share of Gaussian noise in a view, drawn from U(0, noise): log((1 - share) exp(x) + share exp(n)) with n from
    N(0, 1) for each bin and frame; 0 for none. Source: BYOL-A's authors (0.2, in none of their recipes). Ours: the
    noise has the weight `share`; in their code it has weight 1 and deviation `share`, and so adds 1 at no noise.
    """
    mixup: MixupConfig = field(default_factory=MixupConfig)
    rrc: RandomResizeCropConfig = field(default_factory=RandomResizeCropConfig)
    specaug: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
