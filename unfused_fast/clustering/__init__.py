"""Rows to assignments, the same on every back end; and the memory bank that holds the rows.

In: rows (N, D) of unit norm. Out: assignments (N,), centroids (K, D), scores of a clustering; the bank on device
and disk.
Read first: kmeans.py, then bank.py.
"""

from unfused_fast.clustering.assign import Clustering, cluster_rows, clustered_points, own_similarities
from unfused_fast.clustering.backends import resolve_backend
from unfused_fast.clustering.background import Background
from unfused_fast.clustering.bank import GENERATIONS_KEPT, MemoryBank
from unfused_fast.clustering.bank_export import describe, export, format_of
from unfused_fast.clustering.bank_manifest import DamagedBank, Layout, Manifest, Norms, generation_name, layout
from unfused_fast.clustering.bank_read import BANK, DTYPES, Generation, generation_paths, open_bank
from unfused_fast.clustering.collapse import Collapse, Collapsed
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.clustering.rows import Points
from unfused_fast.clustering.scores import (
    RowSpread,
    cluster_sizes,
    normalised_mutual_information,
    pseudo_label_kmeans,
    resolve_pca_dim,
    row_spread,
    stalled,
)
from unfused_fast.clustering.seeding import match_clusters
