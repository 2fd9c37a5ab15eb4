"""Every remedy that our own texts name exists: commands, options, LeRobot's tools, extras.

The texts are all string literals of the source, docstrings aside. A command in backticks is parsed
against the command line; an option must be one of some command, or LeRobot's own.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import tomllib
from huggingface_hub.cli.hf import app as HUB
from repository import ROOT
from typer.main import get_command

from mtdit.cli.app import app
from mtdit.cli.lerobot_flags import IGNORED, KNOWN

SOURCES = ("mtdit", "export/mtdit_export", "runtime/mtdit_runtime", "robots/mtdit_robots")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {o for c in COMMANDS.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
# options of other programs, in texts that are about those programs
OTHERS = {
    *("--robot.id", "--teleop.id", "--operation.type", "--help"),
    *("--force-reinstall", "--no-install-recommends"),  # pip's, apt-get's
    *("--user", "--quiet", "--follow", "--unit"),  # systemd's
    *("--partial", "--delay-updates", "--delete", "--exclude", "--info"),  # rsync's
    "--rm",  # docker's
    *("--without-root", "--without-tensorrt", "--target", "--wheel", "--prefix"),  # install.sh's
}
CONVERTER = ("--repo-id", "--root", "--push-to-hub")  # of LeRobot's convert_dataset_v21_to_v30
TOOLS = {e.name: e for e in entry_points(group="console_scripts")}
GAP = "GAP"  # what an f-string puts in


def written(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else GAP


def texts() -> Iterator[tuple[str, str]]:
    """(file and line, text) of every string literal that is not a docstring."""
    for top in SOURCES:
        for file in sorted((ROOT / top).rglob("*.py")):
            tree = ast.parse(file.read_text())
            inner = {
                id(part)
                for node in ast.walk(tree)
                if isinstance(node, ast.JoinedStr)
                for part in node.values
            }
            alone = {
                id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
            }  # docstrings
            for node in ast.walk(tree):
                if id(node) in alone or id(node) in inner:
                    continue
                place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield place, node.value
                elif isinstance(node, ast.JoinedStr):
                    yield (
                        place,
                        "".join(
                            str(getattr(p, "value", "")) if isinstance(p, ast.Constant) else GAP
                            for p in node.values
                        ),
                    )


TEXTS = list(texts())
QUOTED = sorted({(place, code) for place, text in TEXTS for code in re.findall(r"`([^`]+)`", text)})
MTDIT = [q for q in QUOTED if q[1].startswith("mtdit ")]
LEROBOT = [q for q in QUOTED if q[1].startswith("lerobot-")]


def test_texts_are_found() -> None:
    assert len(MTDIT) > 20
    assert len(LEROBOT) > 2


@pytest.mark.parametrize(("place", "line"), MTDIT, ids=lambda value: str(value)[:60])
def test_a_command_of_ours_exists(place: str, line: str) -> None:
    command, *words = shlex.split(line)[1:] or ["--help"]
    if command in ("--help", "COMMAND", GAP):
        return
    assert command in COMMANDS, f"{place}: there is no `mtdit {command}`"
    known = {o for p in COMMANDS[command].params for o in (*p.opts, *p.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known | {"--help"}, f"{place}: `{line}` has an option that does not exist"


@pytest.mark.parametrize(("place", "line"), LEROBOT, ids=lambda value: str(value)[:60])
def test_a_tool_of_lerobot_exists(place: str, line: str) -> None:
    """Its entry point, and each setting and value that is named."""
    tool, *words = shlex.split(line)
    assert tool in TOOLS, f"{place}: LeRobot has no {tool}"
    source = Path(str(TOOLS[tool].load().__code__.co_filename)).read_text()
    for word in words:
        assert word.removeprefix("--") in source, f"{place}: {tool} does not know {word}"


def test_an_option_that_a_text_names_exists() -> None:
    theirs = {f"--{name}" for name in (*KNOWN, *IGNORED)}
    named = {
        (place, option.rstrip("_-"))
        for place, text in TEXTS
        if "console.rich" not in text
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", text)
    }
    unknown = sorted(
        (place, option)
        for place, option in named
        if option not in OPTIONS | OTHERS | theirs | {*CONVERTER, f"--no-{GAP}"}
        and not any(known.startswith(option) for known in theirs)
    )
    assert unknown == []


# where a text stands -> the commands of which it may name an option without naming the command,
# besides one that a folder or file on the way is called by
SAID_BY = {
    "mtdit/training": ("train",),
    "mtdit/data": ("train",),
    "mtdit/checkpoint": ("train", "export", "eval", "verify"),
    "export/mtdit_export": ("export", "verify"),
    "runtime/mtdit_runtime/recording": ("record",),
    "runtime/mtdit_runtime/verify": ("build", "verify", "export"),
    "runtime/mtdit_runtime": ("run", "eval", "record", "teleoperate", "replay", "bench", "build"),
    "robots/mtdit_robots/so101": ("calibrate",),
    "robots/mtdit_robots/twin": ("twin", "run"),
    "robots/mtdit_robots": ("run", "record", "teleoperate"),
}


def unquoted(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)


def having(option: str) -> set[str]:
    """The commands that have this option."""
    return {
        name
        for name, command in COMMANDS.items()
        if any(option in (*p.opts, *p.secondary_opts) for p in command.params)
    }


def test_an_option_is_one_of_the_command_that_names_it() -> None:
    """Not only of some command: `mtdit export` must not advise an option of `mtdit train`."""
    wrong = []
    for place, text in TEXTS:
        if text.startswith("pip "):
            continue
        reached = next((names for top, names in SAID_BY.items() if place.startswith(top)), ())
        home = {part for part in re.split(r"[/.:]", place) if part in COMMANDS}
        named = {name for name in COMMANDS if re.search(rf"\b{name}\b", unquoted(text))}
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", unquoted(text)):
            has = having(option)
            if reached and has and option not in OTHERS and not has & {*reached, *home, *named}:
                wrong.append((place, option))
    assert wrong == []


def test_a_command_outside_backticks_exists_with_its_options() -> None:
    wrong = []
    for place, text in TEXTS:
        for command, rest in re.findall(r"\bmtdit ([a-z][\w-]*)([^:;,()\n]*)", unquoted(text)):
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))
            known = {option for option in options if command in having(option)}
            if options - known and "console.rich" not in text:
                wrong.append((place, command, sorted(options - known)))
    assert wrong == []


@pytest.mark.parametrize("line", sorted({c for _, c in QUOTED if c.startswith("hf ")}))
def test_a_command_of_the_hub_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split()[1:]
    HUB.main([*words, "--help"], prog_name="hf", standalone_mode=False)
    assert f"Usage: hf {' '.join(words)} " in capsys.readouterr().out


def test_the_converter_of_lerobot_has_its_options() -> None:
    import lerobot

    name = "scripts/convert_dataset_v21_to_v30.py"
    source = (Path(str(lerobot.__file__)).parent / name).read_text()
    assert [option for option in CONVERTER if f'"{option}"' not in source] == []


def test_an_install_line_names_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for place, text in TEXTS:
        for names in re.findall(r"mtdit\[([\w,-]+)\]", text):
            assert set(names.split(",")) <= extras.keys() | {GAP}, f"{place}: {text}"
