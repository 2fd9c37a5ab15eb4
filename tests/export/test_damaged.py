"""The facts and the config of a checkpoint, damaged or of something else: one line that names the
thing, before any work is done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged import FILES, HUGE, INF, NAN, STATE, TOP, edit_json, refusal
from workshop import Workshop

from mtdit.checkpoint.read import open_checkpoint
from mtdit.cli.app import main
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_runtime.bundle.bundle import open_bundle


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"joints": None}, "facts.joints must be list, not NoneType"),
        ({"joints": [1, 2, 3, 4, 5, 6]}, r"facts.joints\[0\] must be str, not int"),
        ({"joints": []}, "0 joints have 6 values of max_speed"),
        ({"joints": ["a"] * 6}, "two joints are called 'a'"),
        (
            {"joints": list("abcde"), "max_speed": [1.0] * 5},
            r"observation.state: 6 values, .*; action: 6 values, joints a, b, c, d, e\)",
        ),
        ({"tasks": None}, "facts.tasks must be list, not NoneType"),
        ({"tasks": [3]}, r"facts.tasks\[0\] must be str, not int"),
        ({"tasks": ["half \ud800"]}, r"mtdit\.json is not valid JSON.*surrogates not allowed"),
        ({"fps": "30"}, "facts.fps must be int, not str"),
        ({"fps": 30.0}, "facts.fps must be int, not float"),
        ({"fps": True}, "facts.fps must be int, not bool"),
        ({"fps": 0}, "facts.fps is 0"),
        ({"fps": NAN}, "facts.fps must be int, not float"),
        ({"fps": HUGE}, "facts.fps is 1000"),
        ({"max_speed": [1.0] * 5}, "6 joints have 5 values of max_speed"),
        ({"max_speed": [1.0] * 5 + [NAN]}, "max_speed contains NaN, infinite or negative"),
        ({"max_speed": [1.0] * 5 + [-1]}, "max_speed contains NaN, infinite or negative"),
        ({"max_speed": [1.0] * 5 + [HUGE]}, r"mtdit\.json is not valid \("),
        ({"colour": 1}, "facts.colour is unknown"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_facts(change: dict[str, Any], says: str, copy: Path) -> None:
    edit_json(copy / "mtdit.json", lambda raw: {**raw, **change})
    assert re.search(says, refusal(copy))


@pytest.mark.parametrize("key", ["dataset", "fps", "joints", "tasks", "max_speed", "robot_type"])
def test_a_fact_that_is_missing(key: str, copy: Path) -> None:
    edit_json(copy / "mtdit.json", lambda raw: raw.pop(key) and None)
    assert f"mtdit.json is not valid (facts.{key} is missing)" in refusal(copy)


def test_instructions_of_persons_end_in_a_bundle(workshop: Workshop, tmp_path: Path) -> None:
    tasks = [
        'say "hello"',
        "öffne die Schublade",
        "می\u200cروم",
        "it's $HOME",
        "打开\u3000抽屉",
        "wave 👩‍🚀",
        "two\nlines\x1b[31m",
        "-x",
        "",
    ]
    checkpoint = workshop.checkpoint(tmp_path / "blind", workshop.config(cameras=(), num_layers=1))
    edit_json(checkpoint / "mtdit.json", lambda raw: raw.update(tasks=tasks))
    export(checkpoint, tmp_path / "p.mtdit", ExportOptions(steps=1))
    bundle = open_bundle(tmp_path / "p.mtdit")
    assert list(bundle.manifest.tasks) == list(bundle.task_features) == tasks


def test_names_of_the_dataset_are_looked_at_too(
    lerobots: Path, recording: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(recording, tmp_path / "drawer"))
    names = [f"{letter}.pos" for letter in "aacdef"]
    edit_json(folder / "meta/info.json", lambda raw: raw["features"]["action"].update(names=names))
    assert "action has two dimensions called 'a'" in refusal(lerobots, dataset=folder)


NO_JSON = (b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b"", b"{", b"[]", b"3", b'{"a": "\\ud800"}')


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content)[:10])
def test_json_that_is_none(file: str, content: bytes, copy: Path) -> None:
    (copy / file).write_bytes(content)
    assert file in refusal(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(horizon=HUGE), "config.json: horizon must be at most 1048576"),
        (
            lambda raw: raw.update(timestep_embed_dim=HUGE),
            "timestep_embed_dim must be an even number from 4 to 1048576",
        ),
        (lambda raw: raw.update(num_layers=10**5), "config.json: num_layers must be at most 1000"),
        (
            lambda raw: raw.update(hidden_dim=1 << 20),
            "does not match its config.json|cannot build a policy",
        ),
        (lambda raw: raw.update(rope_base=HUGE), "config.json: rope_base must be a finite number"),
        (
            lambda raw: raw.update(image_resize_shape=[HUGE, 1]),
            "image_resize_shape must be at most 16384 pixels",
        ),
        (
            lambda raw: raw.update(input_features={}, output_features={}),
            "config.json lists no features",
        ),
        (lambda raw: raw.update(input_features=3), "input_features must map each key to"),
        (lambda raw: raw["input_features"][TOP].update(shape=[3]), "must be RGB with shape"),
        (
            lambda raw: raw["input_features"][TOP].update(shape=[3, 60, 1e9]),
            "input_features must map each key to",
        ),
        (
            lambda raw: raw["input_features"][TOP].update(shape=[3, 60, 10**9]),
            "must have a known type and sizes",
        ),
        (
            lambda raw: raw["input_features"][STATE].update(shape="6"),
            "input_features must map each key to",
        ),
        (
            lambda raw: raw["input_features"][STATE].update(shape=[INF]),
            "input_features must map each key to",
        ),
        (
            lambda raw: raw["input_features"].update(top=raw["input_features"][TOP]),
            "camera 'top' twice",
        ),
    ],
)
def test_the_config(change: Callable[[Any], Any], says: str, copy: Path) -> None:
    edit_json(copy / "config.json", lambda raw: change(raw) and None)
    assert re.search(says, refusal(copy))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/x", "a\nb", "\x1b[2J", "", "a\0", "x" * 300, "a\u2028"]
)
def test_a_camera_is_a_files_name_too(name: str, copy: Path) -> None:
    def rename(raw: Any) -> None:
        raw["input_features"][f"observation.images.{name}"] = raw["input_features"].pop(TOP)

    edit_json(copy / "config.json", rename)
    assert (
        "is not a valid camera: its name must have 1 to 100 bytes, no slash and no control "
        "character" in refusal(copy)
    )


@pytest.mark.parametrize("sampler", ["", "DDIM", "ddim "])
def test_a_sampler_that_is_none(sampler: str, copy: Path) -> None:
    assert "does not fit a diffusion policy: use ddim or ddpm" in refusal(copy, sampler=sampler)


def test_what_is_said_cannot_steer_the_terminal(
    copy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(copy / "mtdit.json", lambda raw: {**raw, "\x1b[2J\n": 1})
    monkeypatch.setattr(
        "sys.argv", ["mtdit", "export", str(copy), "--out", str(copy.parent / "p.mtdit")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert re.fullmatch(
        r"mtdit: .*mtdit\.json is not valid \(facts\.\\x1b\[2J is unknown\).*\n",
        said,
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "diffusion", "vision_backbone": "resnet18"}, "a Diffusion Policy"),
        (
            {"type": "pi0", "paligemma_variant": "gemma_2b"},
            "a policy of type 'pi0', which is not supported",
        ),
        (
            {"vision_encoder_name": "google/siglip-base-patch16-224"},
            "vision_encoder_name must name a CLIP model",
        ),
        (
            {"vision_encoder_name": "facebook/dinov3-vitb16"},
            "vision_encoder_name must name a CLIP model",
        ),
    ],
)
def test_other_architectures_by_config(config: dict[str, Any], says: str, copy: Path) -> None:
    edit_json(copy / "config.json", lambda raw: {**raw, **config})
    assert says in refusal(copy)


def test_a_checkpoint_that_was_copied_by_hand_is_passed_over(copy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run/checkpoints"
    for name in ("000007", "000007-copy", "2nd"):
        shutil.copytree(copy, run / name / "pretrained_model")
    assert open_checkpoint(run.parent).folder == run / "000007/pretrained_model"
