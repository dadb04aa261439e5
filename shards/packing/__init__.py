"""Rows -> a shard set, on any number of processes, through any number of kills: the same bytes.

Read first: pack.py, then layout.py and pack_shard.py.
"""
