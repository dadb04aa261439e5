"""unfused-fast: audio representations from recordings without labels, by UnFuSeD (arXiv 2303.05668) and nine other
methods.

`unfused_fast.load(RUN)` gives the trained encoder of a run, or of a model folder, as a `torch.nn.Module`;
`unfused_fast.load("base")` the one that comes with the package.

Importing this package loads no GPU library; each is imported where it is used, in one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if Path(__file__).with_name("kernels").is_file():  # git's text in place of a link, where a system has none
    __path__.insert(0, str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from unfused_fast.embedding import Embedder as Embedder
    from unfused_fast.embedding import load as load


def __getattr__(name: str) -> Any:
    """`load` and `Embedder`, which need torch, when they are asked for."""
    if name in ("load", "Embedder"):
        from unfused_fast.embedding import embedder

        return getattr(embedder, name)
    raise AttributeError(f"module 'unfused_fast' has no attribute {name!r}")
