"""A finished shard set: its files, table and manifest, and what to say of them.

Read first: table.py.
"""
