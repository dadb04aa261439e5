"""`python -m unfused_fast`, which torchrun needs, is the command line."""

from unfused_fast.cli import main

main()
