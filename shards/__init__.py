"""Audio files -> shards. Knows neither torch nor DALI.   Imports go only to lines above.

callbacks  of long work, and their defaults
sources    a folder, an archive, a CSV or a URL -> rows that say where each file's bytes are
audio      one file -> 16 kHz mono PCM16, or the reason why not
sets       a finished set: shards, clips table, manifest: open_shards()
packing    rows -> a set: pack(); parts and their merge; sets behind URLs
datasets   the data sets of the papers, one adapter each
check      is a set what it was when it was written, and fit to train on?
demo       the embedded sets
"""
