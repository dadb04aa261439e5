"""Is a set what it was when it was written, and fit to train on?

Read first: check.py.
"""
