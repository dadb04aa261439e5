"""One audio file -> verified 16 kHz mono PCM16, or the reason why not; and the measures that packing takes of it.

Read first: decode.py, then open_audio.py.
"""
