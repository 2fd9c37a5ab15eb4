"""Which instructions look like one task, and which are one to CLIP."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Watcher, config_for

from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.training.instructions import alike, token_lines
from mtdit.training.run import train
from mtdit_runtime.policy.tokens import load_tokens

LONG = "move the gripper over the table " * 12 + "and put it into the "
CHINESE = "请把桌子上靠近机械臂底座的那个小方块轻轻夹起来然后慢慢放进{}边的碗里"
THAI = "ค่อยๆ หยิบลูกบาศก์ที่อยู่ใกล้ขอบโต๊ะแล้ววางลงในชามด้าน{}"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("open the drawer", "Open the  drawer."),
        ("open the drawer", "open drawer"),
        ("grab the cube", "grab the cubes"),
        ("open the drawer", "open the drawr"),
        ("push it to the left", "push it, to the left!"),
        ("pick the box", "pick the boxes"),
        ("open_the_drawer", "open the drawer"),
        ("pose le café", unicodedata.normalize("NFD", "Pose le café")),
        ("抓住方块", "抓住方块。"),
        ("หยิบม้า", "หยิบม้า!"),
        ("öffne die schublade", "öffne die schublde"),
        ("возьми красный кубик", "возьми красный кубк"),
    ],
)
def test_one_task_with_two_spellings(a: str, b: str) -> None:
    assert alike(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("open the drawer", "close the drawer"),
        ("push the red cube", "push the blue cube"),
        ("push it to the left", "push it to the right"),
        ("take cup 1", "take cup 2"),
        ("take cup1", "take cup2"),
        ("take block_10", "take block_11"),
        ("move by 100 mm", "move by -100 mm"),
        ("put it on shelf ①", "put it on shelf ②"),
        ("press the seventh button", "press the seven button"),
        ("press button fourth", "press button four"),
        ("pick the cup", "pick the cap"),
        ("put it in bowl A", "put it in bowl B"),
        ("put it in the bowl", "put it in the bowl A"),
        ("take blockA", "take blockB"),
        ("open the drawer", "open the top drawer"),
        ("push 🔴", "push 🟢"),
        ("把红色方块放进左边的碗里", "把红色方块放进右边的碗里"),
        ("赤い立方体を左の箱に入れてください", "赤い立方体を右の箱に入れてください"),
        ("หยิบลูกบาศก์สีแดงวางทางซ้าย", "หยิบลูกบาศก์สีแดงวางทางขวา"),
        ("หยิบมา", "หยิบม้า"),
        ("빨간블록을왼쪽상자에넣어", "빨간블록을오른쪽상자에넣어"),
        ("빨간블록을위쪽상자에넣어", "빨간블록을안쪽상자에넣어"),
        ("जल", "जाल"),
    ],
)
def test_tasks_that_differ_on_purpose(a: str, b: str) -> None:
    assert not alike(a, b)


@pytest.fixture(scope="module")
def lines(clip_folder: Path) -> Callable[..., list[str]]:
    tokenizer = load_tokenizer(clip_folder)

    def said(*tasks: str, length: int = 77) -> list[str]:
        config = PolicyConfig(tokenizer_max_length=length)
        ids = tokenize(tokenizer, list(tasks), config)
        return list(token_lines(tokenizer, tasks, ids, length))

    return said


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (LONG + "left bowl", LONG + "right bowl"),
        (CHINESE.format("左") * 2, CHINESE.format("左") + CHINESE.format("右")),
        (THAI.format("ซ้าย") * 2, THAI.format("ซ้าย") + THAI.format("ขวา")),
    ],
)
def test_tasks_that_are_the_same_tokens(
    a: str, b: str, lines: Callable[..., list[str]], clip_folder: Path
) -> None:
    (line,) = lines(a, b, "open the drawer")
    assert "2 tasks that begin with" in line
    assert "are the same 77 tokens" in line
    assert "cannot tell them apart" in line
    assert not lines(a[-20:], b[-20:])
    on_the_robot = load_tokens(clip_folder / "tokenizer.json")
    assert (on_the_robot(a) == on_the_robot(b)).all()
    for task in (a, b):
        assert task.endswith(on_the_robot.unread(task))
        assert on_the_robot.unread(task)[-15:] in line


def test_a_task_that_is_cut_is_said(lines: Callable[..., list[str]]) -> None:
    assert lines("open the drawer", length=5) == []
    (line,) = lines("open the drawer slowly", length=5)
    assert line == (
        "the task 'open the drawer slowly' is longer than the 5 tokens that CLIP reads: "
        "'slowly' is not read; say first what matters, or shorten it"
    )


def test_it_is_said_before_the_first_step(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(frames, tmp_path / "frames")
    record = json.loads((cache / "frames.json").read_text())
    record["facts"]["tasks"] = [LONG + "left bowl", LONG + "right bowl"]
    (cache / "frames.json").write_text(json.dumps(record))
    said_at: list[list[str]] = []
    watcher = Watcher(at=lambda step: said_at.append(list(watcher.lines)))
    train(config_for(cache, tmp_path / "run", clip_folder, steps=1), watcher)
    assert [line for line in said_at[0] if "are the same 77 tokens" in line]
    weights = {unicodedata.normalize("NFD", "pose le café"): 2.0}
    config = config_for(cache, tmp_path / "run", clip_folder, task_weights=weights)
    assert config.task_weights == {"pose le caf\u00e9": 2.0}
