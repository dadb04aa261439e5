"""A set seen and heard through an encoder: a page with a map of its clips, and a search for what sounds alike.

In: a shard set, or for the search any recordings, and an `Embedder`. Out: a static folder for any web server, or a
table of hits. Read first: folder.py, then page/explore.js.
"""

from unfused_fast.explore.folder import explore_folder
from unfused_fast.explore.layout import MapKind
from unfused_fast.explore.serving import page_server
from unfused_fast.explore.similar import similar_clips, similar_moments
