"""Several processes of one command, on this machine or on a Ray cluster, and again when one has died.

In: `--devices`, `--engine`, `--max-restarts`. Out: the exit code. Read first: launcher.py.
"""
