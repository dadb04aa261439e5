"""Values of different fields that exclude each other, refused before a run starts."""

from __future__ import annotations

from unfused_fast.config.audio import check
from unfused_fast.config.fields import ClusterConfig, Config

UNREAD = {"spherical": (), "pca_kmeans": ("init", "empty", "backend"), "pic": ("init", "empty", "backend", "n_init")}
"""Fields of `cluster` that an algorithm does not read and that say how to cluster. Ours: one that is set and then not
read would be taken for one that was tried. `k` and `iterations`, which presets set, are left out.
"""


def check_together(config: Config) -> None:
    """Raises UserError for values that exclude each other; presets.with_values calls it when all are set."""
    cluster = config.cluster
    check(
        cluster.algo == "spherical" or config.model.prediction == "linear",
        f"cluster.algo = {cluster.algo} has no centroids that could be prototypes; "
        "use it with --set model.prediction=linear",
    )
    for name in UNREAD[cluster.algo]:
        value, default = getattr(cluster, name), getattr(ClusterConfig(), name)
        check(
            value == default,
            f"cluster.{name} = {value}, but cluster.algo = {cluster.algo} does not read it; "
            f"leave it at {default}, or use cluster.algo=spherical",
        )
    check(
        cluster.init != "warm" or config.model.prediction == "prototypes",
        "cluster.init = warm starts from the last prototypes, but model.prediction = linear has none; "
        "use cluster.init=random or kmeans++",
    )
    check(
        cluster.algo != "pic" or len(cluster.heads) == 1,
        f"cluster.k = {','.join(map(str, cluster.heads))}: cluster.algo = pic finds the number of clusters itself, so "
        "that heads would be equal; give one number, or use cluster.algo=spherical",
    )
    check(
        config.prototypes.freeze or config.model.prediction == "prototypes",
        "prototypes.freeze = False, but model.prediction = linear has no prototypes, and trains its layer anyway; "
        "leave it at True",
    )
    check(
        config.data.sampler == "every_clip" or config.bank.fill == "pass",
        f"data.sampler = {config.data.sampler} leaves clips out of an epoch, which would be missing in the bank; "
        "use it with --set bank.fill=pass",
    )
    check(
        config.pseudo.crop == "centre" or config.pseudo.seconds > 0,
        f"pseudo.crop = {config.pseudo.crop} is the place of a window, but pseudo.seconds = 0 takes whole clips; give "
        "pseudo.seconds too",
    )
    check(
        config.eval.seconds == "auto" or config.eval.crop != "full",
        f"eval.seconds = {config.eval.seconds} is the length of a crop, but eval.crop = full takes whole clips; use it "
        "with --set eval.crop=centre or random",
    )
