"""`python -m mtdit`, and `accelerate launch -m mtdit train` for several processes."""

from mtdit.cli import main

main()
