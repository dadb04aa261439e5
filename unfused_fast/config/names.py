"""Names that the command line and the stages share."""

from __future__ import annotations

from typing import Literal

Stage = Literal["pretrain", "distill", "linear", "finetune"]
PresetName = Literal["recommended", "paper", "authors", "decar-v1"]
BASELINES = ("logmel", "random")
"""Encoders without a run: mean and deviation of each mel bin, and a network as initialised."""
