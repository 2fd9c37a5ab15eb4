"""The `mtdit` command: parse the options, call one stage, print its result.

Each stage is imported inside its command, so `mtdit run` on the robot computer never imports torch.
A user's mistake ends in one line on standard error and exit code 2.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn, cast

import typer

from mtdit.cli.commands import (
    arm,
    cameras,
    demo,
    deploy,
    doctor,
    export,
    init,
    inspect,
    record,
    run,
    service,
    simulate,
    train,
    twin,
)
from mtdit.cli.configured import configured
from mtdit.cli.lerobot_flags import translate
from mtdit.cli.terminal.console import MAX_LINE, console
from mtdit.cli.terminal.help import CommandList, GroupedHelp
from mtdit.training.rank import rank
from mtdit_robots.errors import ExportError, UserError
from mtdit_runtime.text import printable

INTERRUPTED = 130  # the exit code that shells use for Ctrl-C

app = typer.Typer(
    cls=CommandList,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a Multitask DiT policy on a LeRobot dataset and run it on an SO-101 arm.",
)

# in the order in which `mtdit --help` lists them
COMMANDS: dict[str, Callable[..., None]] = {
    "simulate": simulate.simulate,
    "train": train.train,
    "export": export.export,
    "run": run.run,
    "eval": run.evaluate,
    "bench": run.bench,
    "deploy": deploy.deploy,
    "doctor": doctor.doctor,
    "twin": twin.twin,
    "demo": demo.demo,
    "find-port": arm.find_port,
    "setup-motors": arm.setup_motors,
    "calibrate": arm.calibrate,
    "teleoperate": record.teleoperate,
    "record": record.record,
    "replay": record.replay,
    "repair": record.repair,
    "find-cameras": cameras.find_cameras,
    "build": export.build,
    "verify": export.verify,
    "inspect": inspect.inspect,
}
for _name in COMMANDS:
    app.command(_name, cls=GroupedHelp)(configured(_name, COMMANDS))
app.command("init", cls=GroupedHelp)(init.init)  # it writes the file that the others read
app.command("service", cls=GroupedHelp)(service.service)  # its words are those of `mtdit run`

UsageError = cast(
    "type[typer.BadParameter]", typer.BadParameter.__mro__[1]
)  # click's; typer does not export it


def main() -> None:
    """Entry point. A user's mistake and a missing extra end in one line on standard error and exit
    code 2, a failure in exit code 1, Ctrl-C in 130.
    """
    # torch's threads sleep while they wait: spinning at barriers makes training 4 times slower as
    # soon as a core is shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # a file's name may hold bytes that are not text: print them escaped, as standard error does
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(_translated(sys.argv[1:]), prog_name="mtdit", standalone_mode=False)
        if code == INTERRUPTED:
            _fail("interrupted", code)
        sys.exit(code)
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "mtdit"
        _fail(f"{error.format_message().rstrip('.')}: see {command} --help")
    except typer.Abort:
        _fail("interrupted", INTERRUPTED)
    except ExportError as error:
        _refused(error)
    except OSError as error:
        from mtdit_runtime.bundle.publish import DISK_FULL

        if error.filename is not None or error.errno in DISK_FULL:
            place = error.filename or "the disk"
            _fail(f"{place}: {error.strerror}: choose another place, or make room there")
        _fail(str(error), code=1)  # the twin or the arm stopped answering
    except ModuleNotFoundError as error:
        from mtdit_robots.extras import extra_of, missing

        if extra_of(error.name or "") is None:
            raise
        extra = "export" if sys.argv[1] in ("export", "verify") else ""  # it includes "train"
        _fail(str(missing(error.name or "", f"this command needs {error.name}", extra)))


def _translated(words: list[str]) -> list[str]:
    """The command line with `mtdit` options only: lerobot-train's flags are translated, and other
    commands take LeRobot's spelling of an option, with underscores.
    """
    if words[:1] != ["train"]:
        return [_hyphens(word) for word in words] or ["--help"]
    said = translate(words[1:])
    if rank() == 0:
        for note in (*said.notes, *filter(None, [said.unlike])):
            console.print(note)
    return ["train", *said.words]


def _hyphens(word: str) -> str:
    name, sign, value = word.partition("=")
    return f"{name.replace('_', '-')}{sign}{value}" if word.startswith("--") else word


def _refused(error: ExportError) -> NoReturn:
    """The table of stages shows where the error comes from."""
    if error.stages:
        from mtdit.cli.terminal.bundle_tables import check_table

        console.print(check_table("refused: compared with the trained policy", error.stages))
    _fail(str(error), code=1)


def _fail(message: str, code: int = 2) -> NoReturn:
    who = f"mtdit: rank {rank()}" if rank() else "mtdit"
    print(f"{who}: {printable(' '.join(message.split()), MAX_LINE)}", file=sys.stderr)
    sys.exit(code)
