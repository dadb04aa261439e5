"""LARC and LARS by their formulas, worked by hand; the schedule; the groups."""

import math
from typing import Any, Literal

import pytest
import torch
from host_waits import Recorded

from unfused_fast.config.fields import OptimConfig
from unfused_fast.config.presets import preset, with_values
from unfused_fast.methods import method_class
from unfused_fast.models.audiontt import DistillNetwork, FinetuneNetwork
from unfused_fast.training.optim import LARC, LARS, build_optimizer, learning_rate


def test_larc_two_steps_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))  # norm 5
    optimizer = LARC([weight], lr=0.1, momentum=0.9, weight_decay=0.01, trust=0.02)
    weight.grad = torch.tensor([0.6, 0.8])  # norm 1
    optimizer.step()
    # rate = 0.02 * 5 / (1 + 0.01 * 5) = 0.0952381; g + wd p = (0.63, 0.84); buffer = (0.06, 0.08); p -= 0.1 * buffer
    torch.testing.assert_close(weight.data, torch.tensor([2.994, 3.992]))
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    rate = 0.02 * 4.99 / (2 + 0.01 * 4.99)
    buffer = [0.9 * 0.06 + rate * 0.02994, 0.9 * 0.08 + rate * 2.03992]
    torch.testing.assert_close(weight.data, torch.tensor([2.994 - 0.1 * buffer[0], 3.992 - 0.1 * buffer[1]]))


def test_a_later_step_makes_no_momentum() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, weight.grad = LARC([weight], lr=0.1), torch.ones(2)
    made = []
    for _ in range(2):
        with Recorded() as seen:
            optimizer.step()
        made.append("zeros_like" in seen.names)
    assert made == [True, False]


def test_larc_leaves_zero_weights_to_plain_sgd() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, -2.0])
    LARC([weight], lr=0.1).step()
    torch.testing.assert_close(weight.data, torch.tensor([-0.1, 0.2]))


def test_larc_without_trust_scaling_is_torch_sgd() -> None:
    torch.manual_seed(0)
    one, two = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    two.load_state_dict(one.state_dict())
    ours = LARC([{"params": list(one.parameters()), "adaptive": False}], lr=0.05, momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.SGD(two.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        inputs = torch.randn(7, 5)
        for network, optimizer in ((one, ours), (two, theirs)):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, two.weight)


def test_lars_keeps_the_rate_of_each_step_in_its_momentum() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))  # norm 5
    optimizer = build_optimizer(
        torch.nn.ParameterList([weight]), OptimConfig(name="lars", lr=0.1, weight_decay=0.01, trust=0.02)
    )
    assert type(optimizer) is LARS
    weight.grad = torch.tensor([0.6, 0.8])  # norm 1
    optimizer.step()
    # rate = 0.02 * 5 / (1 + 0.01 * 5) = 0.0952381; g + wd p = (0.63, 0.84); v = 0.1 * (0.06, 0.08); p -= v
    torch.testing.assert_close(weight.data, torch.tensor([2.994, 3.992]))
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    rate = 0.02 * 4.99 / (2 + 0.01 * 4.99)
    update = [0.9 * 0.006 + 0.5 * rate * 0.02994, 0.9 * 0.008 + 0.5 * rate * 2.03992]
    torch.testing.assert_close(weight.data, torch.tensor([2.994 - update[0], 3.992 - update[1]]))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_that_of_torch_on_matrices_and_adamw_elsewhere(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    shapes = {"encoder": (6, 3, 3, 3), "deep": (8, 1, 3, 3), "linear": (5, 6), "bias": (5,), "classifier": (4, 5)}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    network = torch.nn.ParameterDict(
        {
            n: value.clone(memory_format=layout if value.ndim == 4 else torch.preserve_format)
            for n, value in start.items()
        }
    )
    network.class_scores = ("classifier",)
    optimizer = build_optimizer(network, OptimConfig(name="muon", lr=0.05, weight_decay=0.1))
    # torch's own: on copies, flattened by rows whatever the layout
    own = {name: torch.nn.Parameter(_rows(value).clone()) for name, value in start.items()}
    sized, rest = [own[name] for name in ("encoder", "deep", "linear")], [own["bias"], own["classifier"]]
    theirs = [
        torch.optim.Muon(sized, 0.05, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 0.05, betas=(0.9, 0.999), weight_decay=0.1),
    ]
    for rate in (0.05, 0.02, 0.02):
        for group in [*optimizer.param_groups, *(group for one in theirs for group in one.param_groups)]:
            group["lr"] = rate
        for name, parameter in network.items():
            gradient = torch.randn(shapes[name])
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            own[name].grad = _rows(gradient)
        with Recorded() as seen:
            optimizer.step()
        assert not seen.waits
        for one in theirs:
            one.step()
    for name, parameter in network.items():
        # Muon computes in bfloat16, and sums over columns in the order of memory; an update is of about 0.01
        torch.testing.assert_close(parameter.data, own[name].data.view(shapes[name]), atol=5e-4, rtol=0)
        assert (parameter.data - start[name]).abs().mean() > 5e-3
    assert {key for state in optimizer.state.values() for key in state} == {
        *("momentum_buffer", "step", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize(
    ("made", "scores"),
    [
        ("delores-m", set()),
        ("slicer", {"clusterer.0", "clusterer.2"}),
        (lambda config: DistillNetwork(config, 3), {"classifier", "heads.0", "heads.1", "heads.2"}),
        (lambda config: FinetuneNetwork(config, 3), {"classifier"}),
    ],
)
def test_muon_leaves_class_scores_alone_to_adamw(made: Any, scores: set[str]) -> None:
    values = {"model.channels": 4, "model.dim": 32, "model.proj_hidden": 24, "distill.head": "linear"}
    if isinstance(made, str):
        config = with_values(preset("recommended", "pretrain", made), values)
        network = method_class(config).build(config)
    else:
        network = made(with_values(preset("recommended", "distill"), values))
    names = {parameter: name.removesuffix(".weight") for name, parameter in network.named_parameters()}
    _, *groups = build_optimizer(network, OptimConfig(name="muon", lr=0.001)).param_groups
    assert {names[parameter] for group in groups for parameter in group["params"] if parameter.ndim > 1} == scores


@pytest.mark.parametrize("name", ["larc", "lars"])
def test_exclude_1d_keeps_decay_and_adaptation_off_biases(name: Literal["larc", "lars"]) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    groups = build_optimizer(network, OptimConfig(name=name, exclude_1d=True)).param_groups
    assert [len(group["params"]) for group in groups] == [1, 3]
    assert groups[1]["weight_decay"] == 0 and groups[1]["adaptive"] is False and groups[0]["adaptive"] is True


def test_cosine_schedule() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_epochs=1)
    rates = [learning_rate(config, step, 10, 20) for step in range(200)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and rates[10] == pytest.approx(2.0)
    assert rates[105] == pytest.approx(1.0) and rates[199] == pytest.approx(1 - math.cos(math.pi / 190), rel=1e-6)
    short = [learning_rate(OptimConfig(lr=1.0, warmup_epochs=10), step, 10, 5) for step in range(50)]
    assert short[4] == pytest.approx(1.0), "the warm-up takes a tenth of a short run"
    assert learning_rate(OptimConfig(lr=0.3, schedule="constant"), 0, 10, 5) == 0.3
