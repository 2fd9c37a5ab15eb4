"""Weights as other programs save them: wrapped, as an adapter, in parts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtdit.checkpoint.names import PRETRAINED, WEIGHTS
from mtdit.checkpoint.read import open_checkpoint
from mtdit_robots.errors import UserError

PREFIXES = ("module.", "_orig_mod.", "_orig_mod.module.", "base_model.model.", "policy.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_stands_before_all_names_is_taken_off(prefix: str, saved: Path) -> None:
    folder = saved / PRETRAINED
    before = open_checkpoint(folder).policy().state_dict()
    weights = load_file(folder / WEIGHTS)
    save_file({prefix + k: v for k, v in weights.items()}, folder / WEIGHTS)
    found = open_checkpoint(folder).policy().state_dict()
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_a_wrapper_inside_a_name_is_taken_off(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = load_file(folder / WEIGHTS)
    inside = {
        k.replace("noise_predictor.", "noise_predictor._orig_mod."): v for k, v in weights.items()
    }
    save_file(inside, folder / WEIGHTS)
    assert open_checkpoint(folder).weights().keys() == weights.keys()


def test_two_policies_in_one_file_are_refused(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = load_file(folder / WEIGHTS)
    both = {**weights, **{f"ema.{k}": v.clone() for k, v in weights.items()}}
    save_file(both, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"twice, as .* so it holds two policies"):
        open_checkpoint(folder).policy()


def test_an_adapter_saved_before_the_merge_is_named(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = load_file(folder / WEIGHTS)
    name = "noise_predictor.input_proj"
    weights[f"{name}.base_layer.weight"] = weights.pop(f"{name}.weight")
    weights[f"{name}.lora_A.default.weight"] = torch.zeros(4, 6)
    save_file({f"base_model.model.{k}": v for k, v in weights.items()}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"adapter .*lora_A.* before the merge"):
        open_checkpoint(folder).policy()


def test_an_adapter_says_what_it_is_and_how_to_merge_it(saved: Path) -> None:
    folder = saved / PRETRAINED
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "me/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match=r"adapter \(LORA\) for 'me/base'.*merge_and_unload"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="merge it first"):
        open_checkpoint(folder)


def test_the_line_that_merges_an_adapter_writes_a_policy_that_opens(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it stands, LeRobot's part by LeRobot. `peft` is none of our packages: a stand-in adds
    1 to a weight in its place.
    """

    def merged(policy: torch.nn.Module, place: str) -> SimpleNamespace:
        assert place == str(adapter)
        weight = policy.get_parameter("noise_predictor.input_proj.weight")
        weight.data += 1
        return SimpleNamespace(merge_and_unload=lambda: policy)

    base, adapter = saved / PRETRAINED, saved / "my adapter"
    shutil.copytree(base, adapter, ignore=lambda *_: {WEIGHTS, "config.json"})
    raw = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError) as refused:
        open_checkpoint(adapter)
    peft = SimpleNamespace(PeftModel=SimpleNamespace(from_pretrained=merged))
    monkeypatch.setitem(sys.modules, "peft", peft)
    (line,) = re.findall("type `(.+)`, then use", str(refused.value))
    python, _, copies = line.partition(" && ")
    exec(shlex.split(python)[2], {})
    subprocess.run(copies, shell=True, check=True)
    (place,) = re.findall("then use (.+)$", str(refused.value))
    before, after = open_checkpoint(base).policy(), open_checkpoint(place).policy()
    name = "noise_predictor.input_proj.weight"
    assert torch.equal(after.get_parameter(name), before.get_parameter(name) + 1)


def test_weights_in_parts_are_named(saved: Path) -> None:
    folder = saved / PRETRAINED
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00002.*save_pretrained"):
        open_checkpoint(folder).policy()
