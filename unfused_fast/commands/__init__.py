"""Flags to calls; what is printed; exit codes. Commands that belong together share a file; each imports
what it calls only when it runs.

Read first: flags.py.
"""
