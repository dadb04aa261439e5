"""Sources of recordings: a folder, an archive, a CSV, a URL -> rows that say where the bytes of each file are.

Read first: source_rows.py, then row.py and location.py.
"""
