"""A trained encoder applied to other audio.

In: a run, a model folder, a foreign checkpoint. Out: `load` gives an `Embedder`; files and sets to embeddings; exports.
Read first: embedder.py, then files.py.
"""

from unfused_fast.embedding.embedder import Embedder, load
from unfused_fast.embedding.export import check_places, export_graph, export_hub
from unfused_fast.embedding.files import embed_files
from unfused_fast.embedding.foreign import import_checkpoint
from unfused_fast.embedding.formats import format_of
from unfused_fast.embedding.parts import check_place, rejected_path
from unfused_fast.embedding.reading import too_short
from unfused_fast.embedding.sources import embed_rows, shard_set_rows
