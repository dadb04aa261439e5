"""Hostile input, generated: audio files, names, archives and CSV files that a packer meets once and must survive."""
