"""The network that follows, and the queue, against plain Python."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn

from unfused_fast.models.momentum import KeyQueue, follow, follower


def test_a_follower_moves_by_its_decay_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    copied, optimizer = follower(network), torch.optim.SGD(network.parameters(), 0.1)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    wanted = {name: parameter.detach().double() for name, parameter in network.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            copied(torch.randn(8, 3))
        network(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        follow(copied, network, 0.9)
        for name, parameter in network.named_parameters():
            wanted[name] = 0.9 * wanted[name] + 0.1 * parameter.detach().double()
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], atol=1e-6, rtol=0)
        assert not torch.equal(parameter, network.get_parameter(name)) and parameter.grad is None
    assert int(copied[1].num_batches_tracked) == 5 and not torch.equal(copied[1].running_mean, network[1].running_mean)
    before = [parameter.clone() for parameter in copied.parameters()]
    follow(copied, network, 1.0)
    assert all(map(torch.equal, before, copied.parameters()))


@pytest.mark.parametrize("batches", [(3, 3, 3, 3), (5, 2, 9), (4, 13, 1)])
def test_the_queue_holds_the_last_keys(batches: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    queue = KeyQueue(6, 2)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(6))
    wanted = deque(queue.keys.tolist(), maxlen=6)
    for size in batches:
        keys = torch.randn(size, 2)
        queue.push(keys)
        wanted.extend(keys.tolist())
    first = int(queue.oldest)
    assert (queue.keys[first:].tolist() + queue.keys[:first].tolist()) == list(wanted)
