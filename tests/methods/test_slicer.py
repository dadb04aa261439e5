"""The losses of SLICER against numbers worked out by hand and plain Python; its centroids against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightly_losses import lightly_loss
from method_kinds import small
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.distributed import ALONE
from unfused_fast.methods.moco import info_nce
from unfused_fast.methods.slicer import cluster_loss

CLIPS = torch.arange(16)


def shares(clips: int = 12, k: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(clips, k, generator=torch.Generator().manual_seed(seed)).softmax(dim=1).requires_grad_()


@pytest.fixture
def method() -> Any:
    return small("slicer", **{"cluster.k": 6, "method.queue": 60, "model.dropout": 0})


def test_the_cluster_loss_is_nt_xent_of_columns() -> None:
    first, second = shares(), shares(seed=1)
    wanted = lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=1.0)(first.T, second.T)
    torch.testing.assert_close(cluster_loss(first, second), wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, (first, second)) for loss in (cluster_loss(first, second), wanted))
    )
    apart = torch.eye(2)  # two clips, each in a cluster of its own, in both views
    assert cluster_loss(apart, apart).item() == pytest.approx(math.log(math.e + 2) - 1, rel=1e-5)


def test_the_loss_is_of_both_directions_and_of_clusters(method: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(16, 1, 64, 32, generator=generator) for _ in range(2))
    queue = method.queue.keys.clone()
    found = method.loss(views, CLIPS)
    (first, own), (second, other) = (method.network(view) for view in views)
    keys = [normalize(method.key_network(view)[0], dim=1) for view in views]
    wanted = info_nce(normalize(first, dim=1), keys[1], queue, 0.2) + info_nce(
        normalize(second, dim=1), keys[0], queue, 0.2
    )
    torch.testing.assert_close(found, wanted + cluster_loss(own, other))
    found.backward()
    assert all(parameter.grad is None for parameter in method.key_network.parameters())
    assert all(bool(parameter.grad.any()) for parameter in method.network.clusterer.parameters())
    method.after_step(CLIPS)
    torch.testing.assert_close(
        method.queue.keys[:32], torch.cat(keys[::-1])
    )  # the first direction asks for the second view
    assert torch.equal(method.queue.keys[32:], queue[32:])
    log = method.end_epoch()
    mean = own.detach().mean(dim=0).double().numpy()
    assert log["perplexity"] == pytest.approx(np.exp(-(mean * np.log(mean)).sum()), abs=0.01)
    assert {"alignment", "uniformity"} < set(log) and "of 6 clusters in use" in method.summary(log)


def test_the_centroids_of_k_mix_are_those_of_the_clips_mean_spectra(method: Any) -> None:
    """Sixty clips of four kinds, in batches; the first epoch alone looks at them."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.randn(4, 64, generator=generator)
    clips = kinds[torch.arange(60) % 4][:, None, :, None] + 0.3 * torch.randn(60, 1, 64, 32, generator=generator)
    passes: list[bool] = []

    def batches(augmented: bool) -> Any:
        passes.append(augmented)
        for start in range(0, 60, 16):
            rows = torch.arange(60)[start : start + 16]
            ALONE.batch([len(rows)])
            yield rows, clips[rows]

    method.begin_epoch(1, batches)
    means = clips.mean(dim=3)[:, 0].numpy()
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    wanted = KMeans(4, n_init=10, random_state=0).fit(units).cluster_centers_
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    cosines = method.mixup_centroids.numpy() @ wanted.T
    assert sorted(cosines.argmax(axis=1)) == [0, 1, 2, 3] and cosines.max(axis=1).min() > 0.9999
    method.begin_epoch(2, batches)
    assert passes == [False]
