"""`mtdit WORDS` in this process: what a person sees, without an interpreter started for it.

Real processes are kept for what needs one: the entry point, signals, terminals, missing packages.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from mtdit.cli.app import main
from mtdit.cli.terminal.console import console


def mtdit(*words: str | Path, cwd: Path | None = None, **environment: str) -> CompletedProcess[str]:
    """As `subprocess.run` tells it: exit code, standard output, standard error. No terminal.

    The folder, the environment and where words for people go are as before afterwards.
    """
    command = ["mtdit", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", command),
        patch.dict(os.environ, environment),
        patch.object(console, "stderr", False),
        contextlib.chdir(cwd or Path.cwd()),
        open(os.devnull) as nothing,
        patch.object(sys, "stdin", nothing),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())


def assert_one_line(done: CompletedProcess[str], *parts: str, code: int = 2) -> None:
    """Exit code 2, one line on stderr, no traceback, and every part of the message there."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]
