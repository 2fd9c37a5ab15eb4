"""mtdit.toml: every option is in it, a flag goes before it, and an error names line and key."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from command_line import assert_one_line, mtdit
from repository import DEMO

from mtdit.cli.app import COMMANDS, app
from mtdit.cli.config_file import read_config
from mtdit.cli.config_keys import Key, keys_of, shown, takes_cameras
from mtdit.cli.configured import configured
from mtdit.cli.flags import option

CLICK = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CAMERAS = '[cameras.top]\nsource = "/dev/video0"\nrotation = 90\n'


def parsed(name: str, file: Path, *words: str) -> Any:
    """The command's values as click has them, without running it."""
    return CLICK[name].make_context(name, ["--config", str(file), *words])


def written(folder: Path, *lines: str) -> Path:
    file = folder / "mtdit.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def example(key: Key, folder: Path) -> Any:
    """A value that is not the default."""
    if issubclass(key.kind, Enum):
        value: Any = next(one.value for one in key.kind if one.value != key.default)
    elif key.kind is bool:
        value = not key.default
    elif key.kind in (int, float):
        low = 0 if key.low is None else key.low
        value = key.kind(low + 1 if key.high is None or low + 1 <= key.high else key.high)
    else:
        value = str(folder / key.name)
    return [value] if key.is_list else value


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else getattr(value, "value", value)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_in_its_table(name: str, tmp_path: Path) -> None:
    keys = keys_of(COMMANDS[name])
    options = {one.name for one in CLICK[name].params}
    cameras = {"camera"} if takes_cameras(COMMANDS[name]) else set()
    assert options - {"config"} == {key.parameter for key in keys.values()} | cameras
    wanted = {word: example(key, tmp_path) for word, key in keys.items()}
    lines = [f"{word} = {shown(value)}" for word, value in wanted.items()]
    ctx = parsed(name, written(tmp_path, f"[{name}]", *lines))
    for word, key in keys.items():
        assert plain(ctx.params[key.parameter]) == wanted[word], word
        assert ctx.get_parameter_source(key.parameter).name == "DEFAULT_MAP"


def test_what_options_declares_is_at_the_top_for_every_command(tmp_path: Path) -> None:
    everywhere: dict[str, list[tuple[str, Key]]] = {}
    for name, command in COMMANDS.items():
        for key in keys_of(command).values():
            if key.is_shared:
                everywhere.setdefault(key.name, []).append((name, key))
    assert set(everywhere) >= {
        *("robot", "port", "calibration", "bundle", "units", "max_speed", "home_seconds"),
        *("chunk_timeout", "bus_timeout", "leader_port", "leader_calibration", "backend"),
    }
    assert not set(everywhere) & {*COMMANDS, "cameras"}, "a key and a table of one name"
    for word, places in everywhere.items():
        value = "so101" if word == "robot" else example(places[0][1], tmp_path)
        file = written(tmp_path, f"{word} = {shown(value)}")
        for name, key in places:
            needed = [f"--{k.name}=x" for k in keys_of(COMMANDS[name]).values() if k.name != word]
            needed = [w for w in needed if w in ("--task=x", "--out=x", "--port=x", "--dataset=x")]
            host = ["me@robot"] if name == "deploy" else []
            ctx = parsed(name, file, *host, *needed)
            assert plain(ctx.params[key.parameter]) == value, (name, word)


def test_an_option_that_is_added_is_a_key(tmp_path: Path) -> None:
    seen = []

    def later(far: Annotated[float, option("Robot", "Says something new.")] = 1.0) -> None:
        """Do something new that no page knows."""
        seen.append(far)

    new = typer.Typer()
    new.command()(configured("later", {**COMMANDS, "later": later}))
    command = typer.main.get_command(new)
    file = written(tmp_path, "[later]", "far = 3")
    command(["--config", str(file)], standalone_mode=False)
    command(["--config", str(file), "--far", "4"], standalone_mode=False)
    assert seen == [3.0, 4.0]


def test_the_commands_own_table_goes_before_the_top_and_a_flag_before_both(tmp_path: Path) -> None:
    top = ['port = "/dev/a"', "max_speed = 50"]
    file = written(tmp_path, *top, "[teleoperate]", "max_speed = 60")
    ctx = parsed("teleoperate", file)
    assert (ctx.params["port"], ctx.params["max_speed"]) == ("/dev/a", 60)
    assert parsed("replay", file, "--dataset", "d").params["max_speed"] == 50
    assert parsed("teleoperate", file, "--max-speed", "70").params["max_speed"] == 70


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('robot = "so101"\nprot = "/dev/a"', ":2: unknown key 'prot': did you mean 'port'?"),
        ("bus-timeout = 1", ":1: unknown key 'bus-timeout': did you mean 'bus_timeout'?"),
        ("\n[camera.top]", ":2: unknown key 'camera': did you mean 'cameras'?"),
        (
            "episode_seconds = 3",
            ":1: 'episode_seconds' is not for all commands: write it under [record]",
        ),
        ('[record]\ntask = "t"\nepisode = 3', ":3: [record] has no key 'episode': did you mean"),
        ("[run]\n# more\n\nmax_sped = 3", ":4: [run] has no key 'max_sped': did you mean"),
        ('bus_timeout = "1"', ':1: bus_timeout = "1" must be a number from 0.01 to 10'),
        ("bus_timeout = 99", ":1: bus_timeout = 99 must be a number from 0.01 to 10"),
        ("seed = 1.5", ":1: seed = 1.5 must be a whole number from 0 to 2147483647"),
        ("seed = true", ":1: seed = true must be a whole number from 0"),
        ("port = 3", ":1: port = 3 must be text in quotes"),
        ('robot = "so100"', ':1: robot = "so100" must be one of "twin", "so101"'),
        ("[record]\nimages = 1", ":2: images = 1 must be true or false"),
        ('[simulate]\ntask = "t"', ':2: task = "t" must be a list in brackets, each text in quo'),
        ("record = 3", ":1: record must be a table: write [record]"),
        ('cameras = ["top"]', ":1: cameras must be a table: write [cameras.top]"),
        ('[cameras]\ntop = "0"', ':2: write [cameras.top], and below it source = "/dev/video0"'),
        (
            f"{CAMERAS}rotaton = 1",
            ":4: [cameras.top] has no key 'rotaton': did you mean 'rotation'",
        ),
        ('[cameras.top]\nsource = "0"\nfps = "9"', ":3: [cameras.top] fps '9' must be a number"),
        ("[cameras.top]\nfps = 9", ':1: [cameras.top] has no source: add source = "/dev/video0"'),
        (f'{CAMERAS}[cameras."a.b"]', ":4: camera 'a.b': choose a name without dots"),
        ('port = "/dev/a"\nport = "/dev/b"', ":2: port is given twice: give it once"),
        (f"{CAMERAS}\n{CAMERAS}", ":5: [cameras.top] is given twice: give it once"),
        ("port = /dev/a # no", ':1: port is text without quotes: write port = "/dev/a"'),
        ('port = "/dev/a', ":1: 'port = \"/dev/a' is not TOML (Illegal character"),
        ("[cameras.top", ":1: '[cameras.top' is not TOML (Expected ']'"),
        ("port", ":1: 'port' is not TOML (Expected '='"),
        ("seed = [\n1,\n2,", ":4: '' is not TOML (Invalid value)"),
    ],
)
def test_an_error_names_file_line_and_key(text: str, says: str, tmp_path: Path) -> None:
    """In the file of every command, also where it is about another one."""
    written(tmp_path, text)
    assert_one_line(mtdit("doctor", cwd=tmp_path), f"mtdit: mtdit.toml{says}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    done = mtdit("doctor", "--config", "robot.toml", cwd=tmp_path)
    assert_one_line(done, "cannot read robot.toml (No such file or directory)", "mtdit init")
    (tmp_path / "mtdit.toml").write_bytes('port = "ü"'.encode("latin-1"))
    assert_one_line(mtdit("doctor", cwd=tmp_path), "mtdit.toml is not text in UTF-8")


def test_the_line_of_every_key(tmp_path: Path) -> None:
    """Whatever stands between: values of several lines, comments, quoted and dotted keys, CRLF."""
    lines = [
        '"port" = "a" # port = 2',
        "list = [",
        "  1, # seed = 3",
        '  "]",',
        "]",
        'text = """',
        "seed = 1",
        '"""',
        "seed = 2",
        "cameras.top.fps = 3",
        "cameras.top.width = 3",
        "[ run ]",
        "task = '''",
        "[record]'''",
        "max_speed = 4",
    ]
    file = tmp_path / "mtdit.toml"
    for end in ("\n", "\r\n"):
        file.write_bytes(("\ufeff" + end.join(lines)).encode())
        read = read_config(file)
        for keys, line in (
            ("port", 1),
            ("list", 2),
            ("text", 6),
            ("seed", 9),
            ("cameras.top", 10),
            ("cameras.top.width", 11),
            ("run", 12),
            ("run.task", 13),
            ("run.max_speed", 15),
        ):
            assert read.line_of(keys.split(".")) == line, keys


def test_what_is_for_the_arm_stays_out_of_the_twin(tmp_path: Path) -> None:
    """And a run needs no words at all."""
    written(
        tmp_path,
        'port = "/dev/nothing"',
        'calibration = "nothing.json"',
        f"bundle = {shown(DEMO)}",
        'clock = "lockstep"',
        "duration = 0.3",
        "[run]",
        'task = "open the drawer"',
        "[replay]",
        'dataset = "d"',
        CAMERAS,
    )
    done = mtdit("run", "--robot", "twin", cwd=tmp_path)
    assert "mtdit.toml: bundle, clock, duration, task\n" in done.stdout
    assert done.returncode in (0, 1), done.stderr
    assert_one_line(mtdit("run", cwd=tmp_path), "nothing.json")
    done = mtdit("run", "--robot", "twin", "--port", "/dev/ttyACM0", cwd=tmp_path)
    assert_one_line(done, "--port is for a real arm")


def test_the_twins_scene_stays_out_of_an_arm(tmp_path: Path) -> None:
    written(tmp_path, f"bundle = {shown(DEMO)}", "[run]", 'scene = "open the drawer"')
    words = ("--task", "open the drawer", "--robot", "so101")
    assert_one_line(mtdit("run", *words, cwd=tmp_path), "--port is missing")
    assert_one_line(mtdit("run", *words, "--scene", "x", cwd=tmp_path), "--scene is for the twin")


def test_eval_of_a_checkpoint_goes_before_the_bundle_of_the_file(tmp_path: Path) -> None:
    written(tmp_path, 'bundle = "none.mtdit"')
    words = ("eval", "--task", "open the drawer")
    assert_one_line(mtdit(*words, cwd=tmp_path), "no bundle at none.mtdit")
    assert_one_line(mtdit(*words, "--checkpoint", "none", cwd=tmp_path), "none")
    both = ("--checkpoint", "none", "--bundle", "none.mtdit")
    assert_one_line(mtdit(*words, *both, cwd=tmp_path), "exclude each other")


@pytest.mark.parametrize("command", ["calibrate", "setup-motors"])
def test_the_followers_port_is_not_the_leaders(command: str, tmp_path: Path) -> None:
    """Both commands write to servos."""
    written(tmp_path, 'port = "/dev/follower"')
    words = ("--check",) if command == "calibrate" else ("--motor", "gripper", "--yes")
    done = mtdit(command, "--leader", *words, cwd=tmp_path)
    assert_one_line(done, "`port` in mtdit.toml is the follower's: add --port, or leader_port")
    written(tmp_path, 'port = "/dev/follower"', 'leader_port = "/dev/leader"')
    done = mtdit(command, "--leader", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "/dev/leader" in done.stderr
    assert "/dev/follower" not in done.stdout + done.stderr
