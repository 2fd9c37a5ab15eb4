"""`mtdit demo`: the whole pipeline, from scripted demonstrations to an evaluation.

Every stage is a `mtdit` command line in a process of its own. It is printed before it runs, so that
it can be repeated by hand. Stages that are already done are skipped.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mtdit.cli.config_file import NAME
from mtdit.cli.flags import option
from mtdit.cli.options import OUTPUTS
from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError

TASKS = ("open the drawer", "push the red cube to the left")
STAMPS = "stages"
NOT_JUDGED = "not judged"  # in stages that an earlier version left
CHECKPOINT = "train/checkpoints/last"  # a link to the checkpoint with the number of its step


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo. The defaults take less than 30 minutes on 2 CPU cores."""

    out: Path = Path("outputs/demo")
    episodes: int = 80  # demonstrations per task
    train_steps: int = 4000  # 16 to 20 minutes; recording takes 2 to 5, the other stages 3
    max_minutes: float = 60.0  # of training; ends it on a computer that is far too slow
    eval_episodes: int = 30  # per task; 30 gives a Wilson interval of about +-15 points
    run_seconds: float = 8.0
    image_size: int = 64
    seed: int = 0
    run_seed: int = 100_000  # a scene that is in no demonstration; eval has its own seeds


@dataclass(frozen=True)
class Stage:
    """One command of the demo, and the file that exists once it is done."""

    name: str
    says: str
    command: tuple[str, ...]
    result: Path


def stages(config: DemoConfig) -> list[Stage]:
    """The stages in order. Run and eval use scenes that are in no demonstration."""
    out, seed = config.out, config.seed
    dataset, run, bundle = out / "dataset", out / "train", out / "policy.mtdit"
    tasks = " ".join(f'--task "{task}"' for task in TASKS)
    preparation = [
        _stage(
            "record",
            f"{config.episodes} scripted demonstrations of each of {len(TASKS)} tasks, in the twin",
            f"simulate {tasks} --episodes {config.episodes} --image-size {config.image_size} "
            f"--seed {seed} --out {_word(dataset)} --overwrite",
            dataset / "meta/info.json",
        ),
        _stage(
            "train",
            f"a small policy from scratch on the CPU, {config.train_steps} steps",
            f"train --dataset {_word(dataset)} --preset tiny --steps {config.train_steps} "
            f"--max-minutes {config.max_minutes:g} --seed {seed} --out {_word(run)} --overwrite",
            out / CHECKPOINT,
        ),
        _stage(
            "export",
            "fp16 ONNX graphs with the sampler inside, checked against the torch policy",
            f"export {_word(run)} --fp16 --dataset {_word(dataset)} --out {_word(bundle)}",
            bundle / "manifest.json",
        ),
    ]
    return preparation + [
        stage for task in TASKS for stage in (run_stage(config, task), eval_stage(config, task))
    ]


def run_stage(config: DemoConfig, task: str) -> Stage:
    name = config.out / f"run-{_slug(task)}"
    options = f"--duration {config.run_seconds:g} --seed {config.run_seed}"
    options += f" --video {_word(f'{name}.mp4')} --json {_word(f'{name}.json')}"
    return _stage(
        f"run {task}",
        "in real time, filmed",
        _on_twin("run", config, task, options),
        Path(f"{name}.json"),
    )


def eval_stage(config: DemoConfig, task: str) -> Stage:
    path = config.out / f"eval-{_slug(task)}.json"
    options = f"--episodes {config.eval_episodes} --seed {config.seed} --json {_word(path)}"
    says = f"{config.eval_episodes} scenes that it has not seen, in simulated time"
    return _stage(f"eval {task}", says, _on_twin("eval", config, task, options), path)


def _on_twin(command: str, config: DemoConfig, task: str, options: str) -> str:
    bundle = _word(config.out / "policy.mtdit")
    return f'{command} --robot twin --bundle {bundle} --task "{task}" {options}'


def _word(path: Path | str) -> str:
    """The path quoted for a command line."""
    return shlex.quote(str(path))


def _stage(name: str, says: str, line: str, result: Path) -> Stage:
    return Stage(name, says, tuple(shlex.split(line)), result)


def _slug(task: str) -> str:
    return task.replace(" ", "-")


def run_demo(config: DemoConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the stages that are not done yet, write report.json, and return it.

    Raises UserError with the name of a stage that failed; finished stages are kept and not run
    again.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / STAMPS).mkdir(exist_ok=True)
    redo = False
    for number, stage in enumerate(stages(config), start=1):
        redo = redo or not _is_done(config.out, stage)
        say(f"\n[{number}/{len(stages(config))}] {stage.name}: {stage.says}")
        if redo:
            _run(config.out, stage, say)
        else:
            say(f"    kept from an earlier demo ({_stamp(config.out, stage)})")
    report = _report(config)
    (config.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    summary(report, config.out, say)
    return report


def _stamp(out: Path, stage: Stage) -> Path:
    return out / STAMPS / f"{_slug(stage.name)}.json"


def _is_done(out: Path, stage: Stage) -> bool:
    stamp = _stamp(out, stage)
    return (
        stamp.is_file()
        and stage.result.exists()
        and json.loads(stamp.read_text())["command"] == list(stage.command)
    )


def _run(out: Path, stage: Stage, say: Callable[[str], None]) -> None:
    import subprocess

    _stamp(out, stage).unlink(missing_ok=True)
    # mtdit.toml is for the person's own arm and policy
    words = [*stage.command, *(["--config", os.devnull] if NAME.exists() else [])]
    say(f"    $ mtdit {shlex.join(words)}")
    began = time.monotonic()
    live = {**os.environ, "PYTHONUNBUFFERED": "1"}  # progress appears in a log file at once
    code = subprocess.run(
        [sys.executable, "-m", "mtdit.cli", *words], check=False, env=live
    ).returncode
    if code:
        raise UserError(
            f"demo: stage {stage.name!r} failed with exit code {code}: fix the problem above, "
            "then run the demo again"
        )
    took_s = round(time.monotonic() - began, 1)
    _stamp(out, stage).write_text(json.dumps({"command": stage.command, "took_s": took_s}) + "\n")
    say(f"    done in {took_s:.0f} s")


def _report(config: DemoConfig) -> dict[str, Any]:
    """Success rates and durations, from the files that the stages wrote."""
    stage_s = {
        s.name: json.loads(_stamp(config.out, s).read_text())["took_s"] for s in stages(config)
    }
    tasks = {
        task: {
            "eval": json.loads(eval_stage(config, task).result.read_text()),
            "run": json.loads(run_stage(config, task).result.read_text()),
        }
        for task in TASKS
    }
    import platform

    machine = f"{platform.machine()}, Python {platform.python_version()}"
    return {
        "tasks": tasks,
        "train_steps": int((config.out / CHECKPOINT).resolve().name),
        "planned_steps": config.train_steps,
        "stage_s": stage_s,
        "total_s": round(sum(stage_s.values()), 1),
        "machine": machine,
    }


def summary(report: dict[str, Any], out: Path, say: Callable[[str], None]) -> None:
    """Print what a report says, and if it is worse than intended."""
    say("\nThe trained policy on scenes that it has not seen:")
    for task, result in report["tasks"].items():
        score, run = result["eval"], result["run"]
        interval = f"95 % interval {score['low']:.0%} to {score['high']:.0%}"
        say(f"  {task}: {score['successes']}/{score['episodes']} ({interval})")
        chunk_ms = run["stages"].get("chunk", {}).get("p50_ms", 0.0)
        late = f"{run['late_ticks']} late ticks of {run['ticks']}, a chunk took {chunk_ms:.0f} ms"
        say(f"    filmed run: {run['reason']} after {run['duration_s']:.1f} s, {late}")
        say(f"    verdict on the scenes: {score.get('verdict', NOT_JUDGED)}")
        say(f"    verdict on the filmed run: {run.get('verdict', NOT_JUDGED)}")
    if report["train_steps"] < report["planned_steps"]:
        say(
            f"Training reached its time limit after {report['train_steps']} of "
            f"{report['planned_steps']} steps, so this policy is weaker than it should be: "
            "run the demo again with more --minutes."
        )
    say(f"All stages took {report['total_s'] / 60:.0f} minutes.")
    say(f"Videos: {out}/*.mp4  Report: {out}/report.json")


def demo(
    out: Annotated[Path, option("Results", "Folder for all results.")] = OUTPUTS / "demo",
    episodes: Annotated[
        int, option("Session", "Number of demonstrations per task.", min=1)
    ] = DemoConfig.episodes,
    steps: Annotated[
        int, option("Length", "Number of training steps.", min=1)
    ] = DemoConfig.train_steps,
    minutes: Annotated[
        float, option("Length", "Stop training after this many minutes, even if steps are left.")
    ] = DemoConfig.max_minutes,
    eval_episodes: Annotated[
        int, option("Evaluation", "Number of evaluated scenes per task.", min=1)
    ] = DemoConfig.eval_episodes,
) -> None:
    """Run the whole pipeline on this computer: simulate, train, export, run and evaluate."""
    run_demo(
        DemoConfig(
            out=out,
            episodes=episodes,
            train_steps=steps,
            max_minutes=minutes,
            eval_episodes=eval_episodes,
        ),
        say=console.print,
    )
