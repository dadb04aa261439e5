"""A set seen and heard: a page with a map of its clips, a search for what sounds alike, a sheet of log-mels.

In: a shard set, or for the search any recordings, and for page and search an `Embedder`. Out: a static folder for any
web server, or a table of hits. Read first: folder.py, then page/explore.js.
"""

from unfused_fast.explore.folder import explore_folder
from unfused_fast.explore.layout import MapKind
from unfused_fast.explore.peek import contents, examples_of, write_clips, write_sheet
from unfused_fast.explore.serving import page_server
from unfused_fast.explore.similar import find_similar
