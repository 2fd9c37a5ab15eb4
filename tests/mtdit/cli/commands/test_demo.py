"""The demonstration walks every stage, keeps what is done, and repeats what has changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from repository import DEMO

from mtdit.cli.commands.demo import TASKS, DemoConfig, Stage, _run, run_demo, stages, summary

SHORT = DemoConfig(episodes=1, train_steps=2, eval_episodes=1, run_seconds=0.5)


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoConfig, list[str]]:
    config = replace(SHORT, out=tmp_path_factory.mktemp("demo") / "out")
    said: list[str] = []
    run_demo(config, said.append)
    return config, said


def test_report_holds_every_rate_and_video(walked: tuple[DemoConfig, list[str]]) -> None:
    config, said = walked
    report = json.loads((config.out / "report.json").read_text())
    assert set(report["tasks"]) == set(TASKS)
    assert all(
        0 <= task["eval"]["rate"] <= 1 and task["run"]["ticks"] > 0
        for task in report["tasks"].values()
    )
    assert set(report["stage_s"]) == {stage.name for stage in stages(config)}
    assert len(list(config.out.glob("*.mp4"))) == len(TASKS)
    assert any("report.json" in line for line in said)


def test_a_training_that_its_time_limit_ended_is_named(
    walked: tuple[DemoConfig, list[str]],
) -> None:
    config, said = walked
    assert not any("time limit" in line for line in said)
    assert sum(line.startswith("    verdict on ") for line in said) == 4
    report = json.loads((config.out / "report.json").read_text())
    assert report["train_steps"] == report["planned_steps"] == SHORT.train_steps
    summary({**report, "planned_steps": 500}, config.out, said.append)
    assert any(f"after {SHORT.train_steps} of 500 steps" in line for line in said)


def test_finished_stages_are_kept(walked: tuple[DemoConfig, list[str]]) -> None:
    config, _ = walked
    before = (config.out / "policy.mtdit/manifest.json").read_bytes()
    said: list[str] = []
    run_demo(config, said.append)
    assert sum("kept" in line for line in said) == len(stages(config))
    assert (config.out / "policy.mtdit/manifest.json").read_bytes() == before


def test_a_changed_stage_runs_again_and_all_after_it(walked: tuple[DemoConfig, list[str]]) -> None:
    config, _ = walked
    first, *_ = [s for s in stages(config) if s.name.startswith("eval")]
    said: list[str] = []
    run_demo(replace(config, eval_episodes=2), said.append)
    kept = sum("kept" in line for line in said)
    assert kept == [s.name for s in stages(config)].index(first.name)
    assert json.loads(first.result.read_text())["episodes"] == 2


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
