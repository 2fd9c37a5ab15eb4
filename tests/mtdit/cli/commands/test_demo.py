"""The demonstration walks every stage, keeps what is done, and repeats what has changed."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from once import once
from repository import DEMO

from mtdit.cli.commands.demo import TASKS, DemoConfig, Stage, _run, run_demo, stages, summary

SHORT = DemoConfig(out=Path("out"), episodes=1, train_steps=2, eval_episodes=1, run_seconds=0.5)


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo was run: out/, and what was said. Not to be written to."""
    return once(tmp_path_factory, "demo", walk)


def walk(folder: Path) -> None:
    folder.mkdir()
    said: list[str] = []
    with contextlib.chdir(folder):
        run_demo(SHORT, said.append)
    (folder / "said.json").write_text(json.dumps(said))


@pytest.fixture
def again(walked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is a copy of it, in which the demo may run again."""
    monkeypatch.chdir(shutil.copytree(walked, tmp_path / "copy", symlinks=True))
    return Path.cwd()


def test_report_holds_every_rate_and_video(walked: Path) -> None:
    said = json.loads((walked / "said.json").read_text())
    report = json.loads((walked / "out/report.json").read_text())
    assert set(report["tasks"]) == set(TASKS)
    assert all(
        0 <= task["eval"]["rate"] <= 1 and task["run"]["ticks"] > 0
        for task in report["tasks"].values()
    )
    assert set(report["stage_s"]) == {stage.name for stage in stages(SHORT)}
    assert len(list((walked / "out").glob("*.mp4"))) == len(TASKS)
    assert any("report.json" in line for line in said)


def test_a_training_that_its_time_limit_ended_is_named(walked: Path) -> None:
    said = json.loads((walked / "said.json").read_text())
    assert not any("time limit" in line for line in said)
    assert sum(line.startswith("    verdict on ") for line in said) == 4
    report = json.loads((walked / "out/report.json").read_text())
    assert report["train_steps"] == report["planned_steps"] == SHORT.train_steps
    summary({**report, "planned_steps": 500}, SHORT.out, said.append)
    assert any(f"after {SHORT.train_steps} of 500 steps" in line for line in said)


def test_finished_stages_are_kept(again: Path) -> None:
    before = (again / "out/policy.mtdit/manifest.json").read_bytes()
    said: list[str] = []
    run_demo(SHORT, said.append)
    assert sum("kept" in line for line in said) == len(stages(SHORT))
    assert (again / "out/policy.mtdit/manifest.json").read_bytes() == before


def test_a_changed_stage_runs_again_and_all_after_it(again: Path) -> None:
    names = [stage.name for stage in stages(SHORT)]
    first, *_ = [name for name in names if name.startswith("eval")]
    said: list[str] = []
    run_demo(replace(SHORT, eval_episodes=2), said.append)
    assert sum("kept" in line for line in said) == names.index(first)
    result = stages(SHORT)[names.index(first)].result
    assert json.loads((again / result).read_text())["episodes"] == 2


def test_a_folder_with_a_space_stays_one_word() -> None:
    out = Path("my demo")
    for stage in stages(DemoConfig(out=out)):
        assert any(word.startswith("my demo/") for word in stage.command), stage.command
        assert "my" not in stage.command


def test_a_command_is_one_that_a_person_can_type() -> None:
    lines = [" ".join(stage.command) for stage in stages(DemoConfig())]
    assert any(
        line.startswith("run --robot twin") and "--task open the drawer" in line for line in lines
    )
    assert not any("seed 0" in line for line in lines if line.startswith("run"))


def test_a_stage_reads_no_settings_of_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mtdit.toml").write_text("[inspect]\nnothing = 1\n")
    (tmp_path / "stages").mkdir()
    result, said = tmp_path / "look.json", []
    words = ("inspect", str(DEMO), "--json", str(result))
    _run(tmp_path, Stage("look", "", words, result), said.append)
    assert result.is_file()
    assert said[0].endswith("look.json --config /dev/null")
