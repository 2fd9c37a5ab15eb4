"""docs/python.md: its Python runs, in order, in one process and tiny; its table is whole."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import ROOT

import mtdit

PAGE = (ROOT / "docs/python.md").read_text()
BLOCK = re.compile(r"^(<!-- hardware -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TASK = "open the drawer"
FACTS = ("joints", "cameras", "frame_sizes", "n_obs_steps", "horizon", "n_action_steps", "fps")
SMALL = {
    "hidden_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "timestep_embed_dim": 16,
    "num_inference_steps": 2,
}
# what the page says -> what the test runs
SMALLER = {
    "steps=2_000": f"steps=2, batch_size=2, policy={SMALL}",
    'mtdit.ExportOptions(precision="fp16")': 'mtdit.ExportOptions(precision="fp16", steps=2)',
    'episodes=50, out="my-dataset"': 'episodes=1, out="my-dataset"',
    "duration_s=10": "duration_s=1",
    "range(90)": "range(20)",
    "mtdit.EvalOptions(episodes=50)": "mtdit.EvalOptions(episodes=1, max_s=1)",
    "episodes=2, episode_s=5, reset_s=1": "episodes=2, episode_s=0.5, reset_s=0",
}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the page was run, and the names that its blocks left."""
    folder, names = tmp_path_factory.mktemp("page"), dict[str, Any]()
    with contextlib.chdir(folder):
        for code in runnable():
            exec(code, names)
    return folder, names


def runnable() -> Iterator[Any]:
    for found in BLOCK.finditer(PAGE):
        if found[1] is None:
            text = found[2]
            for said, meant in SMALLER.items():
                text = text.replace(said, meant)
            yield compiled(text, found)


def compiled(text: str, found: re.Match[str]) -> Any:
    """Errors name the line of the page."""
    above = PAGE[: found.start(2)].count("\n")
    return compile("\n" * above + text, str(ROOT / "docs/python.md"), "exec")


def test_every_block_is_python() -> None:
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python")
    for found in blocks:
        compiled(found[2], found)


def test_what_the_test_makes_smaller_stands_on_the_page() -> None:
    assert [said for said in SMALLER if PAGE.count(said) != 1] == []


def test_the_table_lists_every_name_once() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == mtdit.__all__


def test_the_page_shows_every_function_and_its_options() -> None:
    code = "".join(found[2] for found in BLOCK.finditer(PAGE))
    shown = [
        name
        for name in mtdit.__all__
        if inspect.isfunction(getattr(mtdit, name)) or name.endswith(("Options", "Config"))
    ]
    assert [name for name in shown if f"mtdit.{name}(" not in code] == []


def test_the_page_runs(walked: tuple[Path, dict[str, Any]]) -> None:
    folder, names = walked
    assert names["chunk"].shape == (names["policy"].horizon, 6)
    assert names["report"].stages["chunk"]
    assert names["session"].kept == 2
    assert names["result"].episodes == 1
    for made in (
        "run.mp4",
        "policy.mtdit/manifest.json",
        "waving/meta/info.json",
        "written/meta/info.json",
    ):
        assert (folder / made).is_file()


def test_a_bundle_and_its_checkpoint_are_one_policy(walked: tuple[Path, dict[str, Any]]) -> None:
    folder, names = walked
    chunks = []
    for source in ("policy.mtdit", "outputs/train"):
        policy = mtdit.load(folder / source)
        assert [getattr(policy, name) for name in FACTS] == [
            getattr(names["policy"], name) for name in FACTS
        ]
        policy.reset(TASK, seed=3)
        policy.observe(names["positions"], names["frames"])
        chunks.append(policy.chunk())
    np.testing.assert_allclose(*chunks, atol=0.1)  # fp16; degrees
