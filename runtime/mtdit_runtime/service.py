"""`mtdit run` as a unit of systemd, for the user who installs it.

An arm must not move because a computer was started or a program failed: the unit has no [Install]
section, so nothing can start it at boot, and `Restart=no`. Stopping it is as Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mtdit_robots.errors import UserError

NAME = "mtdit-run.service"


def unit_path() -> Path:
    """Where systemd looks for the units of this user."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "systemd/user", NAME)


def unit_text(command: Sequence[str], folder: Path) -> str:
    """The unit that runs a command in a folder, which is where it finds mtdit.toml and bundles."""
    place = str(folder.absolute())
    if any(not char.isprintable() for char in "".join([place, *command])):
        raise UserError("a unit of systemd takes no control characters: type the words anew")
    line = " ".join(map(_quoted, command))
    return f"""\
# Written by `mtdit service install`. It has no [Install] section: an arm moves when somebody types
# systemctl --user start {NAME.partition(".")[0]}, and never because a computer was started.
[Unit]
Description=mtdit run: a policy drives the arm

[Service]
Type=exec
WorkingDirectory={place.replace("%", "%%")}
Environment=PYTHONUNBUFFERED=1
ExecStart={line}
Restart=no
# as Ctrl-C: the arm returns to its start pose, then loses torque
KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec=90
NoNewPrivileges=yes
"""


def _quoted(word: str) -> str:
    """A word of ExecStart as systemd.syntax(7) and systemd.service(5) want it."""
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(char, escaped)
    return f'"{word}"'


def install(text: str, say: Callable[[str], None]) -> Path:
    """Check the unit with systemd and put it in its place, in one step; it is not started. Returns
    the place.
    """
    if shutil.which("systemctl") is None:
        raise UserError("this computer has no systemd: start `mtdit run` in a terminal")
    path = unit_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mtdit-") as folder:
        new = Path(folder, NAME)
        new.write_text(text)
        if problem := verify(new):
            raise UserError(f"systemd refuses the unit, nothing was installed: {problem}")
        new.replace(path)
    _reload(say)
    return path


def verify(unit: Path) -> str:
    """What systemd does not take in a unit; empty: nothing, or its checker is not installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return ""
    session = {"XDG_RUNTIME_DIR": str(unit.parent), **os.environ}  # it wants one, whatever is there
    command = [program, "--user", "verify", str(unit)]
    done = subprocess.run(command, env=session, capture_output=True, text=True)
    # it tells of other units too, and goes on after what it calls a warning
    return "; ".join(line for line in done.stderr.splitlines() if unit.name in line)


def uninstall(say: Callable[[str], None]) -> Path:
    """Remove the unit. UserError when there is none, and while it runs."""
    path = unit_path()
    if not path.exists():
        raise UserError(f"{path} does not exist: there is nothing to remove")
    if _systemctl("is-active", "--quiet", NAME):
        raise UserError(f"the arm is being driven: type systemctl --user stop {NAME} first")
    path.unlink()
    _reload(say)
    return path


def _reload(say: Callable[[str], None]) -> None:
    if not _systemctl("daemon-reload"):
        say("systemd was not told, no session of it answers: type systemctl --user daemon-reload")


def _systemctl(*words: str) -> bool:
    try:
        done = subprocess.run(["systemctl", "--user", *words], capture_output=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
