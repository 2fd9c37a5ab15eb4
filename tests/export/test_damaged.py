"""Checkpoints that are damaged, or of something else: one line that names the thing, before any
work is done.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from workshop import Workshop

from mtdit.checkpoint.read import open_checkpoint
from mtdit.cli.app import main
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_export.preflight import joints_of, robot_facts
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import open_bundle

STATE, ACTION, TOP = "observation.state", "action", "observation.images.top"
NAN, INF = float("nan"), float("inf")
HUGE = 10**400
NORMALIZER = "policy_preprocessor_step_4_normalizer_processor.safetensors"
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "pretrained_model"))


def refusal(folder: Path, **options: Any) -> str:
    """What the user reads: one line, before the first stage is told, and nothing is left behind."""
    lines, out = list[str](), folder.parent / "p.mtdit"
    with pytest.raises(UserError) as caught:
        export(folder, out, ExportOptions(steps=1, **options), say=lines.append)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1200
    assert not lines
    assert not out.exists()
    return said


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """`change` returns the new content, or changes the old one in place."""
    raw = json.loads(path.read_text())
    changed = change(raw)
    path.write_text(json.dumps(raw if changed is None else changed))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"joints": None}, "facts.joints must be list, not NoneType"),
        ({"joints": [1, 2, 3, 4, 5, 6]}, r"facts.joints\[0\] must be str, not int"),
        ({"joints": []}, "0 joints have 6 values of max_speed"),
        ({"joints": ["a"] * 6}, "two joints are called 'a'"),
        (
            {"joints": list("abcde"), "max_speed": [1.0] * 5},
            "has 6 states, 6 actions and 5 joints",
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
    assert "drawer/meta: two joints are called 'a'" in refusal(lerobots, dataset=folder)


@pytest.fixture
def lerobots(copy: Path) -> Path:
    (copy / "mtdit.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (f"{STATE}.min", None, "'min' of observation.state is missing"),
        (
            f"{STATE}.max",
            torch.zeros(5),
            r"'max' of observation.state has shape \(5,\), but the policy needs \(6,\)",
        ),
        (
            f"{STATE}.max",
            torch.zeros(1, 6),
            r"'max' of observation.state has shape \(1, 6\), but the policy needs",
        ),
        (
            f"{STATE}.min",
            torch.full((6,), -INF),
            "'min' of observation.state contains NaN, infinite",
        ),
        (
            f"{STATE}.max",
            torch.full((6,), 3e38),
            r"'max' of observation.state contains NaN, infinite numbers or numbers above 1e\+30",
        ),
        (f"{STATE}.max", torch.full((6,), -90.0), "'max' of observation.state is below 'min'"),
        (f"{ACTION}.min", None, "'min' of action is missing"),
        (f"{ACTION}.max", torch.full((6,), NAN), "'max' of action contains NaN"),
        (
            f"{ACTION}.max",
            torch.tensor(1.0),
            r"'max' of action has shape \(1,\), but the policy needs \(6,\)",
        ),
        (
            f"{TOP}.mean",
            torch.zeros(4, 1, 1),
            r"'mean' of observation.images.top has shape \(4,\), but the policy needs",
        ),
        (f"{TOP}.std", None, "'std' of observation.images.top is missing"),
        (
            f"{TOP}.std",
            torch.tensor([1.0, NAN, 1.0]),
            "'std' of observation.images.top contains NaN",
        ),
        (
            f"{TOP}.std",
            torch.tensor([1.0, -1.0, 1.0]),
            "'std' of observation.images.top is below zero",
        ),
    ],
)
def test_statistics(key: str, value: torch.Tensor | None, says: str, copy: Path) -> None:
    edit_tensors(
        copy / NORMALIZER, lambda t: t.pop(key) if value is None else t.update({key: value})
    )
    assert re.search(
        rf"{NORMALIZER}: {says}.*; copy the checkpoint again, or train again", refusal(copy)
    )


@pytest.mark.parametrize("feature", [STATE, ACTION])
def test_statistics_of_a_whole_feature(feature: str, copy: Path) -> None:
    edit_tensors(
        copy / NORMALIZER,
        lambda t: [t.pop(key) for key in list(t) if key.startswith(f"{feature}.")],
    )
    assert f"'min' of {feature} is missing" in refusal(copy)


def test_the_range_of_actions_is_needed_whatever_normalises(copy: Path) -> None:
    edit_json(
        copy / "config.json", lambda raw: raw["normalization_mapping"].update(ACTION="MEAN_STD")
    )
    edit_tensors(copy / NORMALIZER, lambda t: t.pop("action.max"))
    assert "'max' of action is missing" in refusal(copy)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers(value: float, copy: Path) -> None:
    name = "noise_predictor.transformer_blocks.1.mlp.2.weight"
    edit_tensors(copy / WEIGHTS, lambda t: t[name].view(-1)[7].fill_(value))
    said = refusal(copy)
    assert (
        f"{WEIGHTS}: {name} contains NaN or infinite numbers; "
        "use an earlier checkpoint or train again" in said
    )


@pytest.mark.parametrize(
    "content", ['{"steps": 3}', '{"steps": [3]}', '{"steps": {}}', "3", "[]", "null"]
)
def test_a_preprocessor_without_statistics(content: str, copy: Path) -> None:
    (copy / "policy_preprocessor.json").write_text(content)
    assert "policy_preprocessor.json does not name the normalizer's file of statistics" in refusal(
        copy
    )


ELSEWHERE = (5, None, ["a"], "", ".", "..", "../../x", "clip/config.json", "a\0b", "a" * 400, "no")


@pytest.mark.parametrize("name", ELSEWHERE, ids=lambda name: repr(name)[:10])
def test_statistics_that_are_elsewhere(name: Any, copy: Path) -> None:
    file = {"registry_name": "normalizer_processor", "state_file": name}
    (copy / "policy_preprocessor.json").write_text(json.dumps({"steps": [file]}))
    assert "as file of statistics, but there is no such file in that folder" in refusal(copy)


def test_statistics_of_an_absolute_path(copy: Path, tmp_path: Path) -> None:
    outside = Path(shutil.copyfile(copy / NORMALIZER, tmp_path / "x.safetensors"))
    for path in (str(outside), "../x.safetensors"):
        edit_json(
            copy / "policy_preprocessor.json",
            lambda raw: raw["steps"][4].update(state_file=path),  # noqa: B023
        )
        assert "as file of statistics, but there is no such file in that folder" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: 3, "it is not a JSON object"),
        (lambda raw: {"vision_config": 3}, "vision_config is not a JSON object"),
        (lambda raw: {**raw, "text_config": []}, "text_config is not a JSON object"),
        (
            lambda raw: raw["vision_config"].update(hidden_size="64"),
            "vision_config.hidden_size must be int, not str",
        ),
        (
            lambda raw: raw["vision_config"].update(hidden_size=HUGE),
            "vision_config.hidden_size is 1000",
        ),
        (lambda raw: raw["vision_config"].update(patch_size=0), "vision_config.patch_size is 0"),
        (lambda raw: raw["vision_config"].update(patch_size=-8), "vision_config.patch_size is -8"),
        (
            lambda raw: raw["vision_config"].update(image_size=True),
            "vision_config.image_size must be int, not bool",
        ),
        (
            lambda raw: raw["text_config"].update(num_hidden_layers=10**6),
            "text_config.num_hidden_layers is 1000000",
        ),
        (
            lambda raw: raw["text_config"].update(num_attention_heads=5),
            "text_config has 5 heads in hidden_size 32",
        ),
        (lambda raw: raw["text_config"].update(layer_norm_eps=NAN), "layer_norm_eps nan"),
        (lambda raw: raw["text_config"].update(layer_norm_eps=HUGE), "does not describe a CLIP"),
        (
            lambda raw: raw["text_config"].update(hidden_act=["gelu"]),
            "text_config.hidden_act must be str, not list",
        ),
        (
            lambda raw: raw["text_config"].update(hidden_act="swish"),
            "activation 'swish' is not supported",
        ),
        (
            lambda raw: raw["text_config"].update(eos_token_id=5),
            "does not match the text tower",
        ),
        (
            lambda raw: raw["text_config"].update(hidden_size=1 << 20),
            "does not match its config.json: it has",
        ),
        (
            lambda raw: raw["text_config"].update(vocab_size=1 << 20),
            "does not match its config.json: it has",
        ),
        (
            lambda raw: raw["vision_config"].update(image_size=224),
            r"config\.json and the CLIP that it names or that is in clip/",
        ),
    ],
)
def test_the_shape_of_clip(change: Callable[[Any], Any], says: str, copy: Path) -> None:
    edit_json(copy / "clip/config.json", change)
    assert re.search(says, refusal(copy))


TOKENS = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
)


@pytest.mark.parametrize("content", ["{}", "{", "", "[]", "null", "3", "[" * 100_000, TOKENS])
def test_the_tokenizer(content: str, copy: Path) -> None:
    (copy / "clip/tokenizer.json").write_text(content)
    assert re.search(
        r"pretrained_model/clip "
        r"(does not contain a valid CLIP tokenizer|holds no tokenizer of CLIP)"
        r".*[:;] copy",
        refusal(copy),
    )


def test_a_tokenizer_that_the_robot_computer_reads_otherwise(copy: Path) -> None:
    edit_json(copy / "clip/tokenizer_config.json", lambda raw: raw.update(pad_token="!"))
    assert "clip does not match the text tower" in refusal(copy)


FILES = ("config.json", "mtdit.json", "policy_preprocessor.json", "clip/config.json")
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


def test_clip_of_a_size_that_is_not_known(lerobots: Path) -> None:
    """As LeRobot writes it: weights and the name of one of OpenAI's, whose shape they then tell."""
    shutil.rmtree(lerobots / "clip")
    names = dict.fromkeys(
        ("vision_encoder_name", "text_encoder_name"), "openai/clip-vit-large-patch14-336"
    )
    edit_json(lerobots / "config.json", lambda raw: {**raw, **names})
    with pytest.raises(
        UserError,
        match="a CLIP tower of width 32, which is not a multiple of the head width 64",
    ):
        open_checkpoint(lerobots).policy()


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


def siglip(weights: dict[str, torch.Tensor]) -> None:
    """A tower without a class token, with a bias on its patches, as SigLIP's."""
    tower = "observation_encoder.vision_encoder.model.vision_model."
    weights.pop(f"{tower}embeddings.class_embedding")
    weights[f"{tower}embeddings.patch_embedding.bias"] = torch.zeros(64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda weights: weights.clear() or weights.update(x=torch.zeros(2)),
            "lacks noise_predictor.input_proj.bias",
        ),
        (
            siglip,
            "lacks observation_encoder.vision_encoder.model.vision_model."
            "embeddings.class_embedding",
        ),
        (
            lambda weights: weights.update({"unet\n.weight": torch.zeros(1)}),
            r"has the unknown tensor 'unet\\n.weight'",
        ),
    ],
)
def test_other_architectures_by_weights(
    change: Callable[[Any], Any], says: str, copy: Path
) -> None:
    edit_tensors(copy / WEIGHTS, change)
    assert re.search(f"{WEIGHTS} does not match its config.json: it {says}", refusal(copy))


@pytest.mark.parametrize("file", [WEIGHTS, NORMALIZER])
@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\xff" * 64, b"\x08" + bytes(7) + b"[[[[[[[["]
)
def test_tensors_that_are_none(file: str, content: bytes, copy: Path) -> None:
    (copy / file).write_bytes(content)
    assert f"{file} cannot be read" in refusal(copy)


def test_a_checkpoint_that_was_copied_by_hand_is_passed_over(copy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run/checkpoints"
    for name in ("000007", "000007-copy", "2nd"):
        shutil.copytree(copy, run / name / "pretrained_model")
    assert open_checkpoint(run.parent).folder == run / "000007/pretrained_model"


# --- anything

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from((10**30, -HUGE, 2**63, 10**6)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def opens_or_explains(folder: Path) -> None:
    try:
        opened = open_checkpoint(folder)
        joints_of(opened, robot_facts(opened, None))
        opened.clip_shape({})
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017, one line is the contract


@given(file=st.sampled_from(FILES), value=ANYTHING)
@settings(max_examples=200, **SETTINGS)
def test_any_json_as_any_file(file: str, value: Any, copy: Path, checkpoint: Path) -> None:
    (copy / file).write_text(json.dumps(value))
    opens_or_explains(copy)
    shutil.copyfile(checkpoint / file, copy / file)


@given(file=st.sampled_from(FILES), data=st.data(), value=ANYTHING)
@settings(max_examples=600, **SETTINGS)
def test_any_value_anywhere(file: str, data: Any, value: Any, copy: Path, checkpoint: Path) -> None:
    content = json.loads((checkpoint / file).read_text())
    place: Any = content
    while True:
        key = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and data.draw(st.integers(0, 3)) == 0:
        del place[key]
        key = data.draw(TEXT)
    place[key] = value
    (copy / file).write_text(json.dumps(content))
    opens_or_explains(copy)
    shutil.copyfile(checkpoint / file, copy / file)
