"""Commands that take arms and cameras from mtdit.toml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import mtdit
from driven_arms import HEIGHT, TASK, WIDTH, Words
from repository import EXAMPLE

from mtdit.cli.config_keys import shown

if TYPE_CHECKING:
    from servo_chain import Chain


def written(folder: Path, *lines: str) -> Path:
    file = folder / "mtdit.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_file_of_the_setup_does_not_say_what_calibrate_compares(
    tmp_path: Path, chain: Chain
) -> None:
    """With a typed --port, --diff reads the servos."""
    written(tmp_path, f"port = {shown(chain.port)}")
    words = ("calibrate", "--file", EXAMPLE, "--diff", EXAMPLE)
    assert mtdit(*words, cwd=tmp_path).stdout == "no difference\n"
    assert "which no servo holds" in mtdit(*words, "--port", chain.port, cwd=tmp_path).stdout


def test_record_takes_everything_from_the_file(words: Words, tmp_path: Path) -> None:
    """Arms, tables of the command, and a camera that is turned; flags go before each of them."""
    written(
        tmp_path,
        f"port = {shown(words.follower.port)}",
        f"leader_port = {shown(words.leader.port)}",
        f"calibration = {shown(EXAMPLE)}",
        f"leader_calibration = {shown(EXAMPLE)}",
        "bus_timeout = 2",
        "home_seconds = 0.2",
        "[record]",
        f"task = {shown(TASK)}",
        "episodes = 5",
        "episode_seconds = 1.5",
        "reset_seconds = 0",
        "[cameras.top]",
        f'source = "file:{words.film}"',
        f"height = {WIDTH}",
        f"width = {HEIGHT}",
        "rotation = 90",
        "[cameras.side]",
        'source = "file:nothing.mp4"',
        f"height = {HEIGHT}",
        f"width = {WIDTH}",
    )
    side = ("--camera", f"side=file:{words.film}")
    done = mtdit("record", "--out", "set", "--episodes", "1", *side, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["total_episodes"] == 1
    shapes = {name: one["shape"] for name, one in info["features"].items() if "images" in name}
    assert shapes == {
        "observation.images.top": [WIDTH, HEIGHT, 3],
        "observation.images.side": [HEIGHT, WIDTH, 3],
    }
    size = ("--camera", "top.rotation=0", "--width", "320", "--height", "240")
    done = mtdit("find-cameras", *side, *size, "--seconds", "0.2", cwd=tmp_path)
    assert done.returncode == 1
    assert "64x48, not 320x240" in done.stdout, "typed sizes are those of all cameras"
