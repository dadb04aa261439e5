"""BYOL-A: from one view of a clip the network predicts what a slowly following network makes of the other view.

Source: Niizumi et al., arXiv 2103.06695 (v1) and 2204.07402 (v2), after BYOL, arXiv 2006.07733, section 3. No clip is
compared with another one, so that nothing but the predictor and the moving average keeps it from collapsing; the log's
`output_std` shows whether it does.
Needs two views, of one crop or of two, and takes local ones; a target network, which gets no gradient and moves by an
exponential moving average alone. v2's fader is `aug.fader`, its normalisation `data.norm` = dataset, v1's `running`.

B clips in a batch, n of them on this rank, P size of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from unfused_fast.config import Config
from unfused_fast.methods.method import Method
from unfused_fast.methods.signs import DeviationSigns
from unfused_fast.models import PretrainNetwork, Projector, follow, follower


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """(B, P) both, of any norm -> () mean squared distance of them at unit norm, 2 - 2 cos. Source: BYOL Eq. 2."""
    return (2 - 2 * cosine_similarity(predictions, targets, dim=1)).mean()


class PredictorNetwork(PretrainNetwork):
    """The online network: encoder, projector, predictor. Source: authors, whose predictor is shaped as the projector.

    The target is a copy whose predictor is the identity.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dim = config.model.proj_dim
        self.predictor: nn.Module = Projector(dim, config.model.proj_hidden, dim)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 1, F, T) -> predictions (B, P) in float32."""
        prediction: Tensor = self.predictor(super().forward(log_mel))
        return prediction.float()


class BYOL(Method):
    """Prediction of a moving average."""

    title, views = "BYOL-A", 2

    def set_up(self, clips: int) -> None:
        self.target = follower(self.network)
        self.target.predictor = nn.Identity()
        self.signs = DeviationSigns(self.ranks)

    @classmethod
    def build(cls, config: Config) -> nn.Module:
        return PredictorNetwork(config)

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """Symmetric: each view predicts the other. Source: BYOL-A's authors, who add both directions. Local views
        predict both: twice the mean over all pairs.
        """
        with self.part("forward target views"), torch.no_grad():
            targets = [self.run(view, network=self.target) for view in views[:2]]
        with self.part("forward"):
            predictions = [self.run(view) for view in views]
        pairs = [(by, of) for by in range(len(views)) for of in range(2) if of != by]
        self.signs.note_outputs(predictions[0].detach())
        return 2 * torch.stack([byol_loss(predictions[by], targets[of]) for by, of in pairs]).mean()

    def after_step(self, clip_ids: Tensor) -> None:
        """The target follows."""
        follow(self.target, self.network, self.config.method.ema)
        super().after_step(clip_ids)
