"""unfused-fast: UnFuSeD (arXiv 2303.05668) from audio files to a result, on one device or many.

Importing this package loads no GPU library; each is imported where it is used, in one file.
"""

__version__ = "0.1.0"
