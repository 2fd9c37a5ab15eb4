"""Another computer, by the system's own ssh and rsync.

Nobody is asked for anything: where ssh would ask, one line says what to type first.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence

from mtdit_robots.errors import UserError

Say = Callable[[str], None]

_OPTIONS = {
    "BatchMode": "yes",  # fails where a password or a yes would be asked for
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "LogLevel": "ERROR",
}
SSH_FAILED = 255  # the exit code of ssh, and of rsync, for what is not the command's own
# What ssh says -> what is wrong and what to type. The first that is found counts.
_REFUSALS = (
    ("Could not resolve", "no computer has this name: correct it, or type user@ADDRESS"),
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "its key is not the one it had: if it was set up anew, type ssh-keygen -R {name}",
    ),
    (
        "Host key verification failed",
        "its key is not known here: type {ssh} {host} once, compare the fingerprint and say yes",
    ),
    ("Permission denied", "ssh asks for a password: type ssh-copy-id {host}"),
    ("Connection refused", "it takes no ssh: there, type sudo apt-get install -y openssh-server"),
    ("timed out", "it does not answer: switch it on, or correct the address"),
    ("No route to host", "it does not answer: switch it on, or correct the address"),
)
_PERCENT = re.compile(r"\s*[\d.,]+[KMGT]?\s+(\d+%)")  # a line of rsync's progress


class Remote:
    """ssh and rsync to one computer, one after the other. say: called with every line that is
    printed there. on_step: called with what is being done, as often as it changes.

    UserErrors begin with the host.
    """

    def __init__(self, host: str, ssh: str, say: Say, on_step: Say) -> None:
        # ssh and rsync would read another form as options, or as a path
        if not re.fullmatch(r"[\w.]([\w.@-]*)", host, re.ASCII):
            raise UserError(f"{host!r} is no host: type user@NAME, or a Host of ~/.ssh/config")
        self.host, self.ssh, self._on_step = host, ssh, on_step
        self.say, self._step = say, ""
        options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        self._ssh = [*shlex.split(ssh), *options]
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def step(self, what: str) -> None:
        """What is done from now on; errors name it."""
        self._step = what
        self._on_step(what)
        self.say(f"{what} ...")

    def ask(self, command: str) -> list[str]:
        """The lines that a short command of bash prints there."""
        return self._called([*self._ssh, "--", self.host, f"bash -c {shlex.quote(command)}"])

    def run(self, command: str) -> None:
        """A long command of bash. It has a terminal, so that it ends where the connection does."""
        words = f"TERM=dumb bash -c {shlex.quote(command)}"
        self._called([*self._ssh, "-tt", "--", self.host, words], self.say)

    def copy(self, sources: Sequence[object], folder: str, *options: str) -> None:
        """Make files and folders in `folder` the same as here, also what they no longer hold.

        What is there is replaced at the end, in one go. What an interrupted copy has brought is
        used by the next one.
        """
        how = ["-rptL", "--partial", "--delay-updates", "--delete", "--info=progress2"]
        shell = ["-e", shlex.join(self._ssh)]
        target = f"{self.host}:{folder}/"
        self._called(["rsync", *how, *options, *shell, *map(str, sources), target], self._progress)

    def stop(self) -> None:
        """End what is being done, and do nothing more. For another thread."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()

    def _progress(self, line: str) -> None:
        share = _PERCENT.match(line)
        if share:
            self._on_step(f"{self._step} {share[1]}")
        else:
            self.say(line)

    def _called(self, words: list[str], say: Say = lambda line: None) -> list[str]:
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # its words are read below
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{words[0]} is not installed here: sudo apt-get install -y openssh-client rsync"
            ) from error
        lines = []
        with self._process as process:
            if self._stopped:
                process.terminate()
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                if line:
                    lines.append(line)
                    say(line)
        if process.returncode:
            raise self._failure(process.returncode, lines)
        return lines

    def _failure(self, code: int, lines: list[str]) -> UserError:
        if code == SSH_FAILED or self._stopped:
            return UserError(f"{self.host}: {self._refusal(lines)}")
        # of rsync the first line says what is wrong, of anything else the last
        told = (
            [line for line in lines if line.startswith("rsync: ")][:1] or lines[-1:] or ["failed"]
        )
        return UserError(f"{self.host}: {self._step}: {told[0].removeprefix('mtdit: ')}")

    def _refusal(self, lines: list[str]) -> str:
        text, name = "\n".join(lines), self.host.rpartition("@")[2]
        for words, advice in _REFUSALS:
            if words in text:
                return advice.format(host=self.host, name=name, ssh=self.ssh)
        why = f" ({lines[-1]})" if lines else ""
        return f"{self._step}: the connection ended{why}: type the same line again, it goes on here"
