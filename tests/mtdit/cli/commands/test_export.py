"""`mtdit export`, `build` and `verify` as a person types them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from command_line import assert_one_line, mtdit
from typer.testing import CliRunner

from mtdit.cli.app import app
from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import MANIFEST, Manifest, write_manifest
from mtdit_runtime.normalize import Stats, save_stats


def in_process(*words: str | Path) -> Result:
    """With the refusal itself in `exception`."""
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_next_command_can_be_pasted(workshop: Any, tmp_path: Path) -> None:
    config = workshop.config(cameras=(), num_layers=1)
    run = tmp_path / "run"
    pretrained = workshop.checkpoint(run / "checkpoints/000010/pretrained_model", config)
    (run / "checkpoints/last").symlink_to("000010")
    out = tmp_path / "my first policy.mtdit"
    done = in_process("export", run, "--out", out, "--steps", "1", "--no-build")
    assert done.exit_code == 0, done.output
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:6] == ["next:", "mtdit", "run", "--robot", "twin", "--bundle"]
    assert words[6:] == [str(out), "--task=open the drawer"]
    made_from = open_bundle(out).manifest.provenance["checkpoint"]
    assert made_from == "/".join(pretrained.parts[-3:]), "the step must not get lost"


def test_one_precision_at_a_time(tmp_path: Path) -> None:
    done = in_process("export", tmp_path, "--out", tmp_path / "p.mtdit", "--int8", "--fp16")
    assert isinstance(done.exception, UserError)
    assert "--fp16 and --int8 exclude each other" in str(done.exception)


def test_verify_passes_what_export_wrote(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = in_process("verify", bundle, "--checkpoint", checkpoint, "--json", report)
    assert done.exit_code == 0, done.output
    for words in (
        "files match their checksums",
        "against the golden fixtures",
        "against the checkpoint",
        "robot, degrees",
    ):
        assert words in done.stdout
    told = json.loads(report.read_text())
    assert told["ok"]
    for against in ("golden", "checkpoint"):
        assert told[against]["failures"] == []
        assert told[against]["stages"]["chunk"]["max_error"] <= 1e-4


def test_verify_begins_with_a_line_that_fits_a_terminal(bundle: Path) -> None:
    first, second, *_ = mtdit("verify", bundle).stdout.splitlines()
    assert first == f"{bundle}: 9 files match their checksums; backend auto: CPU"
    assert second == "against the golden fixtures, fp32"


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_report_that_cannot_be_written_is_told_before_the_work(
    command: str, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = mtdit(command, bundle, "--json", tmp_path / "file/report.json")
    assert_one_line(done, f"{tmp_path}/file is not a folder: choose another place for --json")
    assert done.stdout == ""


def test_bench_of_a_bundle_with_statistics_that_are_not_finite(copy: Path) -> None:
    nan = np.full(6, np.nan, np.float32)
    save_stats(
        copy / "stats.safetensors",
        {key: Stats("MIN_MAX", nan, nan) for key in ("action", "observation.state")},
    )
    write_manifest(copy, open_bundle(copy, check_files=False).manifest)
    done = mtdit("bench", copy, "--backend", "onnx", "--repeats", "2")
    assert_one_line(
        done,
        "stats.safetensors: ",
        "holds NaN or infinite numbers: train on a dataset without them",
    )


def spoilt(folder: Path) -> Path:
    """Whole as far as checksums go, but its chunks are a hundredth off."""
    for path in (folder / "golden").glob("*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "actions": arrays["actions"] + 0.01})
    write_manifest(folder, open_bundle(folder, check_files=False).manifest)
    return folder


def test_verify_fails_a_bundle_that_computes_something_else(copy: Path) -> None:
    done = mtdit("verify", spoilt(copy), "--backend", "onnx", "--json", "-")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "FAILED: outputs differ from the trained policy on this backend\n"
    ), "words for people stand aside"
    told = json.loads(done.stdout)
    assert not told["ok"]
    assert [line.partition(":")[0] for line in told["golden"]["failures"]] == [
        "denoiser",
        "held",
        "chunk",
        "units",
    ]
    done = mtdit("verify", copy, "--backend", "onnx")
    assert done.returncode == 1
    assert "fail: denoiser: max error 0.01 exceeds 0.0001" in done.stdout


def test_verify_refuses_another_checkpoint(bundle: Path, workshop: Any, tmp_path: Path) -> None:
    other = workshop.checkpoint(tmp_path / "other", workshop.config(num_layers=1))
    refusal = in_process("verify", bundle, "--checkpoint", other).exception
    assert isinstance(refusal, UserError)
    assert "was made from other weights" in str(refusal)
    assert_one_line(mtdit("verify", bundle, "--dataset", tmp_path), "--dataset needs --checkpoint")


@pytest.mark.parametrize(
    ("key", "value"), [("n_action_steps", 4), ("horizon", 24), ("image_crop_shape", [40, 40])]
)
def test_verify_refuses_the_same_weights_with_another_config(
    bundle: Path, checkpoint: Path, tmp_path: Path, key: str, value: Any
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, key: value}))
    refusal = in_process("verify", bundle, "--checkpoint", other).exception
    assert isinstance(refusal, UserError)
    assert ("cameras" if key == "image_crop_shape" else key) in str(refusal)
    assert str(refusal).endswith("run `mtdit export` again")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"fps": 60},
        lambda m: {"joints": (m.joints[1], m.joints[0], *m.joints[2:])},
        lambda m: {"joints": tuple(replace(joint, low=-1e6) for joint in m.joints)},
        lambda m: {"joints": tuple(replace(joint, unit="percent") for joint in m.joints)},
    ],
)
def test_verify_refuses_other_joints_and_another_rate_than_the_checkpoints(
    copy: Path, checkpoint: Path, change: Callable[[Manifest], dict[str, Any]]
) -> None:
    m = open_bundle(copy).manifest
    write_manifest(copy, replace(m, **change(m)))
    refusal = in_process("verify", copy, "--checkpoint", checkpoint).exception
    assert isinstance(refusal, UserError)
    assert f"has {next(iter(change(m)))}" in str(refusal)


def tamper(folder: Path) -> None:
    content = bytearray((folder / "vision.onnx").read_bytes())
    content[1000] ^= 1
    (folder / "vision.onnx").write_bytes(content)


def cut_honestly(folder: Path) -> None:
    """A truncated graph whose checksum was adapted."""
    (folder / "vision.onnx").write_bytes((folder / "vision.onnx").read_bytes()[:5000])
    write_manifest(folder, open_bundle(folder, check_files=False).manifest)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**data, **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (tamper, ("vision.onnx does not match its checksum", "copy the bundle again")),
        (cut_honestly, ("cannot run", "vision.onnx", "re-run `mtdit export`")),
        (
            lambda folder: (folder / "denoiser.onnx").unlink(),
            ("denoiser.onnx is missing", "copy the whole bundle"),
        ),
        (
            lambda folder: (folder / MANIFEST).write_text("{"),
            ("manifest.json is not valid JSON", "copy the bundle again"),
        ),
        (
            edit(schema_version=1),
            ("schema version 1, this mtdit reads 3 and 4", "install the matching mtdit"),
        ),
        (edit(files={"../secret": "0" * 64}), ("no checksum",)),
        (
            edit(horizon=17),
            ("graph 'denoiser': noise is float32 (1, 16, 6), not float32 (1, 17, 6)",),
        ),
    ],
)
def test_bad_bundles_are_one_line(
    copy: Path, spoil: Callable[[Path], None], parts: tuple[str, ...]
) -> None:
    spoil(copy)
    assert_one_line(mtdit("verify", copy, "--backend", "onnx"), *parts)


def test_build_without_tensorrt_names_the_extra(bundle: Path) -> None:
    assert_one_line(mtdit("build", bundle), "tensorrt is not installed", install("tensorrt"))
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("flags", [[], ["--no-build"]])
def test_export_says_in_one_line_that_no_engines_were_built(
    workshop: Any, tmp_path: Path, flags: list[str]
) -> None:
    checkpoint = workshop.checkpoint(tmp_path / "blind", workshop.config(cameras=(), num_layers=1))
    done = in_process("export", checkpoint, "--steps", "1", "--out", tmp_path / "new.mtdit", *flags)
    assert done.exit_code == 0, done.output
    said = [line for line in done.output.splitlines() if "TensorRT" in line]
    assert len(said) == (0 if flags else 1)
    for line in said:
        assert line.startswith(
            "no TensorRT engines built (tensorrt is not installed): run `mtdit build"
        )
