"""Audio files -> shards. Knows neither torch nor DALI.

sources     a folder or a CSV -> rows
audio_files one file -> 16 kHz PCM16, or the reason why not
mp3         MP3 files whose first frame has no count
clip_codec  PCM16 <-> the audio member of a shard
plan        probed rows -> pieces, shuffled and laid out in shards
telling     what long work tells its caller
workers     processes that probe and decode, answers in order
shard_files one tar and its DALI index, written and read
building    OUT.partial, and how it takes OUT's place
write       all of it, in one call: pack()
remote_sets a set being made behind a URL
local_sets  a set behind a URL, brought to this machine: local_set()
table       the clips table and the manifest of a finished set: open_shards()
check       is a set what it was when it was written, and fit to train on? check_shard: one tar; check_table: the table
findings    what is wrong with a set, alike ones as one
measures    clipping, silence, DC offset and narrow bands in PCM16
datasets    the data sets of the papers, one adapter each
demo        the embedded sets
"""
