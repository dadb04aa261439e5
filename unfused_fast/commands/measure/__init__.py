"""What `bench` measures and `plan` computes from it.

In: a `Config`, a device, a shard set or its size. Out: rows of figures; bytes, seconds, and what does not fit.
Read first: parts.py, then estimate.py.
"""
