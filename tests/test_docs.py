"""Every `mtdit` and `make` line in the documentation is real: it parses, and where this computer
can, it runs at a tiny size; and every link between the pages leads somewhere.

A code block that cannot run here has an HTML comment in the line before it: `<!-- hardware -->`
(arm, cameras, GPU, several processes), `<!-- hub -->` (downloads) or `<!-- install -->`. Its lines
are parsed all the same.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import patch

import pytest
from command_line import mtdit
from repository import ROOT
from typer.main import get_command

from mtdit.cli.app import app
from mtdit.cli.lerobot_flags import translate
from mtdit.cli.terminal.console import console

PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if (ROOT / name).is_file()
)
MARKS = {"hardware", "hub", "install"}
_BLOCK = re.compile(
    r"^(?: *<!-- (?P<marks>[\w ]+) -->\n)? *```(?P<language>\w*)\n(?P<body>.*?)^ *```", re.M | re.S
)
_INLINE = re.compile(r"`((?:mtdit|make) [^`]+)`")
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)

# What makes a documented line tiny. The last value of an option counts, so these are appended.
TINY = {
    "simulate": "--episodes 1 --image-size 64 --seed 0",
    "train": "--preset tiny --steps 2 --batch-size 2 --workers 1 --device cpu --no-tensorboard "
    "--seed 0",
    "resume": "--steps 4",
    "export": "--no-build --steps 2",
    "run": "--clock lockstep --duration 0.3",
    "eval": "--episodes 1 --max-seconds 0.5",
    "bench": "--repeats 2",
    "verify": "",
    "inspect": "",
    "twin": "--seconds 0.5 --link OUT.tty",
    "doctor": "",
}
# Names that the pages use for the same folder of the desk.
SAME = {"dataset": "my-dataset", "train": "outputs/train", "policy.mtdit": "outputs/policy.mtdit"}
NOT_HERE = {"demo": "tests/mtdit/cli/commands/test_demo.py runs it"}
# An untrained policy may be stopped, a computer may lack something: the command ran all the same.
MAY_FAIL = {"run", "doctor"}


@dataclass(frozen=True)
class Line:
    """One command line of a page. marks: why it cannot run here; whole: from a code block."""

    page: str
    text: str
    marks: frozenset[str] = frozenset()
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def words(self) -> list[str]:
        """The words after `mtdit`."""
        words = shlex.split(self.text, comments=True)
        return words[words.index("mtdit") + 1 :]


TASKS = ("--task", "open the drawer", "--task", "push the red cube to the left")
DESK = (  # what makes the files that the pages speak of
    ("simulate", *TASKS, *TINY["simulate"].split(), "--out", "my-dataset"),
    ("train", "--dataset", "my-dataset", *TINY["train"].split(), "--out", "outputs/train"),
    (
        *("export", "outputs/train", "--dataset", "my-dataset", *TINY["export"].split()),
        *("--out", "outputs/policy.mtdit"),
    ),
)


def lines_of(page: Path) -> Iterator[Line]:
    name, text = str(page.relative_to(ROOT)), page.read_text()
    for block in _BLOCK.finditer(text):
        if block["language"] in ("python", "json", "mermaid"):
            continue
        marks = frozenset((block["marks"] or "").split())
        for line in block["body"].replace("\\\n", " ").splitlines():
            yield from _commands(name, " ".join(line.split()), marks)
    for code in _INLINE.finditer(_BLOCK.sub("", text)):
        yield Line(name, " ".join(code[1].split()), whole=False)


def _commands(page: str, line: str, marks: frozenset[str]) -> Iterator[Line]:
    """`mtdit ...` and `make ...` in a line of a block, behind `A=1` or `torchrun -m` if need be."""
    started = re.match(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*((?:mtdit|make) .*)", line)
    launched = re.match(r"^(?:accelerate launch|torchrun|python) .*-m mtdit(?:\.cli)? (.*)", line)
    if started:
        yield Line(page, started[1], marks)
    elif launched:
        yield Line(page, f"mtdit {launched[1]}", marks | {"hardware"})


LINES = [line for page in PAGES for line in lines_of(page)]
MTDIT = [line for line in LINES if line.text.startswith("mtdit ")]
BLOCKS = [line for line in MTDIT if line.whole]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def test_the_pages_are_read() -> None:
    assert {"README.md", "docs/from-lerobot.md"} <= {line.page for line in LINES}
    assert len(BLOCKS) > 20
    for line in BLOCKS:
        assert line.marks <= MARKS, f"{line}: unknown mark"


@pytest.mark.parametrize("line", BLOCKS, ids=str)
def test_a_line_of_a_code_block_parses(line: Line) -> None:
    """The command exists, its options exist, their values parse. Nothing is executed."""
    command, *rest = line.words
    if "--help" in rest:
        rest.remove("--help")
        assert not rest
        return
    rest = translate(rest).words if command == "train" else rest
    with patch.object(console, "stderr", False):
        COMMANDS[command].make_context(command, rest)


@pytest.mark.parametrize("line", [line for line in MTDIT if not line.whole], ids=str)
def test_a_command_in_a_sentence_exists(line: Line) -> None:
    """Command and options exist; placeholders in place of values are fine there."""
    command, *rest = line.words
    assert command in COMMANDS or command in ("--help", "COMMAND", "WORDS", "X"), (
        f"{line}: no such command"
    )
    if command in COMMANDS:
        known = {o for p in COMMANDS[command].params for o in (*p.opts, *p.secondary_opts)}
        rest = rest[: rest.index("--")] if "--" in rest else rest  # then come another command's
        options = [word.partition("=")[0] for word in rest if word.startswith("--")]
        options = [o for o in options if not ("." in o or "_" in o)]  # lerobot-train's own
        assert set(options) <= known | {"--help"}, f"{line}: no such option"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    said = {
        word for line in LINES if line.text.startswith("make ") for word in line.text.split()[1:2]
    }
    assert said <= targets


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset, the run and the bundle that the pages speak of, tiny."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "tests").symlink_to(ROOT / "tests")  # the bundle of the demo
    for words in DESK:
        done = mtdit(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def tiny(line: Line, place: str) -> tuple[str, ...]:
    """The line's words with tiny sizes; what it writes goes to `place`."""
    command, *rest = line.words
    size = "resume" if command == "train" and "--resume" in rest else command
    more = TINY[size].split()
    if command in ("simulate", "train", "export") and size != "resume":
        more += ["--out", f"{place}.mtdit" if command == "export" else place]
    rest = translate(rest).words if command == "train" else rest
    return (command, *(SAME.get(word, word) for word in _without(rest, more)), *more)


def _without(words: list[str], replaced: list[str]) -> Iterator[str]:
    """The words but for `--option value` where `replaced` has that option too: lines that differ
    only in their size run once.
    """
    skip = False
    for word in words:
        if not skip and not (word in replaced and word.startswith("--")):
            yield word
        skip = not skip and word in replaced and word.startswith("--")


RUNNABLE = {
    tiny(line, "OUT"): line
    for line in BLOCKS
    if not line.marks and line.words[0] in TINY and not line.page.startswith("benchmarks/")
    if tiny(line, "OUT")[:-2] not in {words[:-2] for words in DESK}  # the desk ran it
}


@pytest.mark.parametrize(("words", "line"), RUNNABLE.items(), ids=map(str, RUNNABLE.values()))
def test_a_documented_line_runs(
    words: tuple[str, ...], line: Line, desk: Path, tmp_path: Path
) -> None:
    out = [word.replace("OUT", str(tmp_path / "out")) if "OUT" in word else word for word in words]
    done = mtdit(*out, cwd=desk)
    allowed = (0, 1) if words[0] in MAY_FAIL else (0,)
    assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"


def test_every_line_is_run_or_says_why_not() -> None:
    for line in BLOCKS:
        command = line.words[0]
        assert line.marks or command in TINY or command in NOT_HERE or "--help" in line.words, (
            f"{line}: add <!-- hardware -->, <!-- hub --> or <!-- install --> before the block"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for place, anchor in _LINK.findall(re.sub(r"`[^`\n]*`", "", page.read_text())):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"no {place}"
        if anchor:
            assert anchor in {_slug(h) for h in _HEADING.findall(target.read_text())}, anchor


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_command_of_lerobot_is_in_the_table() -> None:
    names = {e.name for e in entry_points(group="console_scripts") if e.name.startswith("lerobot-")}
    table = (ROOT / "README.md").read_text()
    assert names
    assert {name for name in names if f"`{name}`" not in table} == set()


WALK = re.compile(r"^\| *\d+ *\| `([\w/]+\.py)` \| ((?:`[\w.]+`(?:, )?)+)", re.M)


def test_every_step_of_the_newcomers_walk_is_in_the_code() -> None:
    steps = WALK.findall((ROOT / "docs/architecture.md").read_text())
    assert len(steps) > 10
    for file, names in steps:
        places = [ROOT / top / file for top in ("", "export", "runtime", "robots")]
        (source,) = [place for place in places if place.is_file()]
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", source.read_text()), (
                f"{file} has no {name}"
            )


def test_the_tree_of_the_architecture_page_names_every_module() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    named = set(re.findall(r"\w+", tree))
    for package in ("mtdit", "export/mtdit_export", "runtime/mtdit_runtime", "robots/mtdit_robots"):
        modules = {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__", "__main__"}
        assert sorted(modules - named) == [], package
