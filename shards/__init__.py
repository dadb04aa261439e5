"""Audio files -> shards. Imports neither torch nor DALI.   Each line imports only from the lines above it.

callbacks  progress callbacks and their no-op defaults
sources    a folder, an archive, a CSV or a URL -> rows that say where each file's bytes are
audio      one file -> 16 kHz mono PCM16, or the reason why not
sets       a finished set: shards, clips table, manifest: open_shards()
packing    rows -> a set: pack(); parts and their merge; sets behind URLs
datasets   the data sets of the papers, one adapter each
check      whether a set is intact and fit to train on
demo       the embedded sets
"""
