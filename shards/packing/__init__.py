"""Rows -> a shard set: the same bytes with any number of processes and after any number of kills.

Read first: pack.py, then layout.py and pack_shard.py.
"""
