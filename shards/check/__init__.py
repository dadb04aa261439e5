"""Checks that a set is unchanged since it was written, and fit to train on.

Read first: check.py.
"""
