"""From a checkpoint to a bundle, as a user types it, and every way to type it wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import mtdit

from mtdit.checkpoint.read import open_checkpoint
from mtdit.cli.terminal.bundle_tables import export_table
from mtdit.config import Feature
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_export.preflight import (
    choose_sampler,
    joints_of,
    matching_dataset,
    reach_notes,
    robot_facts,
)
from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.bundle.bundle import Bundle, open_bundle


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert says in line
    assert line.isprintable()
    assert ".part" not in line


def test_bundle_opens_and_says_what_the_policy_is(bundle: Path) -> None:
    m = open_bundle(bundle).manifest
    assert (m.name, m.precision, m.opset, m.fps) == ("small", "fp32", 20, 30)
    assert (m.n_obs_steps, m.horizon, m.n_action_steps) == (2, 16, 8)
    assert (m.sampler.kind, m.sampler.steps, m.sampler.timesteps) == (
        "ddim",
        4,
        (75.0, 50.0, 25.0, 0.0),
    )
    assert m.sampler.clip_range == 1.0
    assert tuple(joint.name for joint in m.joints) == JOINTS
    assert [joint.unit for joint in m.joints] == ["degrees"] * 5 + ["percent"]
    assert (m.joints[0].low, m.joints[0].high, m.joints[0].max_speed) == (-40.0, 20.0, 90.0)
    assert [(c.name, c.height, c.width, c.resize, c.crop) for c in m.cameras] == [
        ("top", 60, 80, (41, 47), (32, 32)),
        ("wrist", 60, 80, (41, 47), (32, 32)),
    ]
    assert m.tasks == ("open the drawer", "push the red cube to the left")
    assert {"golden/0.npz", "golden/1.npz", "tokenizer.json", "tasks.npz"} <= set(m.files)
    assert m.provenance["dataset"] == "demo"


def test_fp16_halves_the_files(bundle: Path, half_bundle: Path) -> None:
    for name in ("vision", "text", "history", "denoiser"):
        full, half = ((b / f"{name}.onnx").stat().st_size for b in (bundle, half_bundle))
        assert half < 0.65 * full


def test_stages_are_told_and_a_bundle_is_replaced_as_a_whole(
    workshop: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = workshop.checkpoint(tmp_path / "blind", workshop.config(cameras=(), num_layers=1))
    out, lines = tmp_path / "p.mtdit", list[str]()
    with caplog.at_level("INFO", "mtdit_export"):  # without `say`
        export(checkpoint, out, ExportOptions(steps=1))
    assert caplog.messages[0].startswith("expect about")
    assert caplog.messages[-1].startswith("verified")
    report = export(checkpoint, out, ExportOptions(steps=2), say=lines.append)
    assert open_bundle(out).manifest.sampler.steps == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blind", "p.mtdit"]
    traced = [f"traced {graph}" for graph in ("text", "history", "denoiser")]
    words = ["expect about", "folded", *traced, "verified", "replaced the previous bundle at"]
    assert len(lines) == len(words)
    assert all(line.startswith(word) for line, word in zip(lines, words, strict=True))
    told = report.to_dict()
    assert told["task"] == "open the drawer"
    assert told["stages"]["denoiser"]["parameters"] > 0
    assert told["stages"]["denoiser"]["latency_ms"] > 0
    assert export_table(report).row_count == len(told["stages"]) == 12


def test_actions_that_the_sampler_cuts_are_said_with_what_helps(
    workshop: Any, tmp_path: Path
) -> None:
    mapping = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MEAN_STD"}
    config = workshop.config(cameras=(), num_layers=1, normalization_mapping=mapping)
    checkpoint, lines = workshop.checkpoint(tmp_path / "blind", config), list[str]()
    export(checkpoint, tmp_path / "p.mtdit", ExportOptions(steps=1), say=lines.append)
    (line,) = [line for line in lines if "clip_sample" in line]
    assert "MEAN_STD" in line
    setting, place = re.findall(r'write ("clip_sample_range": \S+) in (\S+), and', line)[0]
    named = Path(place)
    changed = json.loads(named.read_text()) | json.loads(f"{{{setting}}}")
    named.write_text(json.dumps(changed))
    opened = open_checkpoint(checkpoint)
    assert reach_notes(opened, opened.facts) == []


def test_statistics_that_are_not_finite_name_the_bundle(workshop: Any, tmp_path: Path) -> None:
    config = workshop.config(cameras=(), num_layers=1)
    checkpoint = workshop.checkpoint(tmp_path / "blind", config, span=float("nan"))
    with pytest.raises(UserError) as refusal:
        export(checkpoint, tmp_path / "p.mtdit", ExportOptions(steps=1))
    assert ".part" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["blind"]


def test_export_into_the_folder_one_is_in(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy.mtdit")
    done = mtdit("export", checkpoint, "--out", ".", cwd=copy)
    assert_one_line(
        done, "copy.mtdit contains the current directory: leave it first, or choose another folder"
    )
    open_bundle(copy)


@pytest.mark.parametrize("out", ["\udcff.mtdit", "file/x.mtdit", "holiday"])
def test_places_that_take_no_bundle_are_one_line(
    checkpoint: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "holiday").mkdir()
    assert_one_line(
        mtdit("export", checkpoint, "--out", out, cwd=tmp_path), "choose another folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "holiday"]


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    checkpoint: Path, tmp_path: Path
) -> None:
    done = mtdit("export", checkpoint, "--out", tmp_path / "p.mtdit", "--json", tmp_path)
    assert_one_line(done, f"--json {tmp_path} is a folder: name a file in it")
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mtdit.cli",
        "export",
        checkpoint,
        "--out",
        tmp_path / "p.mtdit",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 120
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.terminate()
        said = running.communicate(timeout=60)[1]
    assert (running.returncode, said) == (130, "mtdit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def lerobots_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """Without the two things that LeRobot does not write."""
    folder = tmp_path / "lerobot" / "pretrained_model"
    shutil.copytree(checkpoint, folder)
    (folder / "mtdit.json").unlink()
    shutil.rmtree(folder / "clip")
    return folder


def test_lerobots_checkpoint_takes_its_facts_from_the_dataset(
    lerobots_checkpoint: Path, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.mtdit"
    export(lerobots_checkpoint, out, ExportOptions(steps=1, dataset=recording))
    m = open_bundle(out).manifest
    assert (m.fps, m.tasks) == (30, ("close the drawer", "wave"))
    assert m.verification["frames"] == "frames of drawer"
    assert sorted(p.name for p in (out / "reference").iterdir()) == ["top.png", "wrist.png"]
    with np.load(out / "golden/0.npz") as golden, np.load(out / "golden/1.npz") as later:
        assert golden["frame.top"].std() > 60  # noise, as recorded
        np.testing.assert_array_equal(
            golden["frame.top"][0], golden["frame.top"][1]
        )  # the first frame, repeated
        assert not np.array_equal(later["frame.top"][0], later["frame.top"][1])


def test_lerobots_checkpoint_alone_does_not_say_enough(
    lerobots_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not state its joints, rate and tasks: add --dataset"):
        export(lerobots_checkpoint, tmp_path / "p.mtdit")


def test_tokenizer_without_a_clip_folder_is_the_common_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(checkpoint)
    with opened.tokenizer_folder() as kept:
        known = (kept / "tokenizer.json").read_bytes()
    named = replace(opened.config, text_encoder_name="openai/clip-vit-base-patch16")
    with replace(opened, folder=tmp_path, config=named).tokenizer_folder() as made:
        assert (made / "tokenizer.json").read_bytes() == known
    assert not made.exists()


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_steps_out_of_range(checkpoint: Path, tmp_path: Path, steps: int) -> None:
    with pytest.raises(
        UserError, match=rf"^steps {steps} is out of range: this policy takes 1 to 100"
    ):
        export(checkpoint, tmp_path / "p.mtdit", ExportOptions(steps=steps))


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [("diffusion", "euler"), ("flow_matching", "ddpm"), ("flow_matching", "ddim")],
)
def test_sampler_must_fit_the_objective(workshop: Any, objective: str, sampler: str) -> None:
    with pytest.raises(
        UserError, match=rf"^sampler {sampler} does not fit a {objective} policy: use"
    ):
        choose_sampler(workshop.config(objective=objective), sampler, 4)


@pytest.mark.parametrize(("sampler", "most"), [("euler", 100), ("rk4", 25)])
def test_flow_takes_a_hundred_calls_of_the_network_at_most(
    workshop: Any, sampler: str, most: int
) -> None:
    config = workshop.config(objective="flow_matching")
    assert choose_sampler(config, sampler, most).num_integration_steps == most
    with pytest.raises(
        UserError, match=rf"^steps {most + 1} is out of range: this policy takes 1 to {most}"
    ):
        choose_sampler(config, sampler, most + 1)


def test_default_sampler_follows_the_objective(workshop: Any) -> None:
    assert (
        choose_sampler(workshop.config(noise_scheduler_type="DDPM"), None, 5).noise_scheduler_type
        == "DDIM"
    )
    assert (
        choose_sampler(
            workshop.config(objective="flow_matching", integration_method="rk4"), None, 5
        ).integration_method
        == "rk4"
    )


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `mtdit train` first"):
        export(tmp_path / "nothing", tmp_path / "p.mtdit")


def test_out_is_something_else(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="exists and is not a bundle"):
        export(checkpoint, tmp_path / "holiday")
    assert (tmp_path / "holiday/photo.jpg").exists()


def test_dataset_of_another_robot(workshop: Any, recording: Path) -> None:
    with pytest.raises(UserError, match="the dataset has no camera 'side' with frames of"):
        matching_dataset(str(recording), workshop.config(cameras=("top", "side")))


@pytest.mark.parametrize("change", [{"fps": 50}, {"joints": ("a", "b", "c", "d", "e", "f")}])
def test_dataset_of_another_robot_with_the_same_shapes(
    checkpoint: Path, recording: Path, change: Any
) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.facts is not None
    matching_dataset(str(recording), opened.config, opened.facts)
    with pytest.raises(
        UserError,
        match=r"the dataset has joints shoulder_pan, .* at 30 Hz, the policy has .* Hz: pass the",
    ):
        matching_dataset(str(recording), opened.config, replace(opened.facts, **change))


def test_policy_that_reads_more_than_it_commands(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.facts is not None
    state = {"observation.state": Feature("STATE", (7,))}
    wide = replace(
        opened,
        config=replace(opened.config, input_features={**opened.config.input_features, **state}),
    )
    assert [joint.name for joint in joints_of(opened, opened.facts)] == list(opened.facts.joints)
    with pytest.raises(
        UserError, match=r"not name every value \(observation.state: 7 values, joints shoulder_pan,"
    ):
        joints_of(wide, opened.facts)


def test_no_dataset(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset at"):
        export(checkpoint, tmp_path / "p.mtdit", ExportOptions(dataset=tmp_path / "nothing"))


def test_facts_of_the_checkpoint_come_first(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert robot_facts(opened, None) is opened.facts


def test_missing_extra_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["mtdit", "export", str(checkpoint), "--out", str(tmp_path / "p.mtdit")]
    code = f"import sys; sys.modules['onnx'] = None; sys.argv = {arguments!r}\n"
    code += "from mtdit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert install("export") in done.stderr


def test_bundle_is_readable_by_others(bundle: Path) -> None:
    """A bundle is copied to a robot and read by another user there."""
    opened: Bundle = open_bundle(bundle)
    for name in opened.manifest.files:
        assert opened.path(name).stat().st_mode & 0o044 == 0o044, name
