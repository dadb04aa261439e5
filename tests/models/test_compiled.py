"""torch.compile through many trainings of one process."""

from __future__ import annotations

import functools

import pytest
import torch

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.models.audiontt import DistillNetwork, PretrainNetwork
from unfused_fast.training.options import Options, compiled

CONFIG = with_values(Config(), {"model.channels": 4, "model.dim": 8, "model.proj_hidden": 8, "model.proj_dim": 8})
VIEW = torch.zeros(2, 1, 64, 32)
COMPILED = Options(torch.device("cpu"), compile=True)


@pytest.fixture(autouse=True)
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and guarded as always, but run as they are: no C++ compiler is needed."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("unfused_fast.training.options.missing_compiler", lambda language: None)


def test_ten_tasks_of_as_many_classes() -> None:
    for classes in range(2, 12):
        compiled(DistillNetwork(CONFIG, classes), COMPILED)(VIEW)


def test_five_widths() -> None:
    """Of each, as in stage 1: views without gradient, views with, and in eval mode."""
    for channels in (2, 4, 6, 8, 10):
        network = PretrainNetwork(with_values(CONFIG, {"model.channels": channels}))
        forward = compiled(network, COMPILED)
        for training, gradient in ((True, False), (True, True), (False, False)):
            network.train(training)
            with torch.set_grad_enabled(gradient):
                forward(VIEW)
