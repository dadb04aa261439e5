"""Flags to calls; what is printed; exit codes. One file a command, which imports what it calls only when it runs.

Read first: flags.py.
"""
