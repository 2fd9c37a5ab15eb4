"""`python -m mtdit.cli`."""

from mtdit.cli import main

main()
