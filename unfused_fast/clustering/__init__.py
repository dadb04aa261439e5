"""Rows to assignments, the same on every back end; and the memory bank that holds the rows.

In: rows (N, D) of unit norm. Out: assignments (N,), centroids (K, D), scores of a clustering; the bank on device
and disk.
Read first: kmeans.py, then bank.py.
"""

from unfused_fast.clustering.assign import Clustering, cluster_rows, clustered_points, own_similarities
from unfused_fast.clustering.backends import resolve_backend
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_export import export, format_of
from unfused_fast.clustering.bank_files import (
    BANK,
    DTYPES,
    GENERATIONS_KEPT,
    DamagedBank,
    Generation,
    generation_paths,
    open_bank,
)
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.clustering.pca import pseudo_label_kmeans, resolve_pca_dim, row_spread
from unfused_fast.clustering.scores import Collapse, Collapsed, cluster_sizes, normalised_mutual_information, stalled
from unfused_fast.clustering.seeding import match_clusters
