"""A finished shard set: its files, table and manifest, and remarks on them.

Read first: table.py.
"""
