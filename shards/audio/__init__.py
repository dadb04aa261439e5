"""One audio file -> verified 16 kHz mono PCM16, or the reason why not; and measurements of its quality.

Read first: decode.py, then open_audio.py.
"""
