"""Draws datasets, reads them with our readers and with LeRobot's, and compares each row with the
truth.

    python tests/mtdit/dataset_cases.py 1000 --seed 1      # draws and checks so many cases
    python tests/mtdit/dataset_cases.py --case 1234        # one of them again, made smaller
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset_damages import DAMAGES
from dataset_liberties import LIBERTIES, NotHere
from made_dataset import ACTION, IMAGES, JOINTS, STATE, Made, Truth, number_of, plain

from mtdit.data.frames import frame_cache
from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.instructions import one_form
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_reader import read_episode
from mtdit_runtime.recording.dataset_repair import repair
from mtdit_runtime.recording.dataset_writer import DatasetWriter


@dataclass(frozen=True)
class Case:
    """seed: of the dataset and of every change. damage: None, or its name."""

    seed: int
    liberties: tuple[str, ...]
    damage: str | None = None

    def __str__(self) -> str:
        names = ", ".join(map(repr, self.liberties))
        return f"Case({self.seed}, ({names}{',' * (len(self.liberties) == 1)}), {self.damage!r})"

    def made(self) -> Made | None:
        """None when a change has no place in this dataset."""
        made = plain(np.random.default_rng(self.seed))
        try:
            for number, name in enumerate(LIBERTIES):
                if name in self.liberties:
                    LIBERTIES[name].change(made, np.random.default_rng([self.seed, number]))
            if self.damage is not None:
                DAMAGES[self.damage][0](made, np.random.default_rng([self.seed, 1000]))
        except NotHere:
            return None
        return made

    @property
    def lerobot(self) -> bool:
        return self.damage is None and all(LIBERTIES[name].lerobot for name in self.liberties)

    @property
    def resumes(self) -> bool:
        return all(LIBERTIES[name].resumes for name in self.liberties)

    def may_be_refused(self, error: UserError) -> bool:
        patterns = [LIBERTIES[name].refused for name in self.liberties]
        patterns += [DAMAGES[self.damage][1]] if self.damage else []
        return any(p is not None and re.search(p, str(error)) for p in patterns)


def draw(seed: int) -> Case:
    rng = np.random.default_rng([7, seed])
    count = int(rng.choice([1, 2, 3, 5, 8]))
    chosen = rng.permutation(list(LIBERTIES))[:count].tolist()
    damage = str(rng.choice(list(DAMAGES))) if rng.integers(3) == 0 else None
    return Case(seed, tuple(sorted(chosen)), damage)


# -- readers


Seen = tuple[np.ndarray, np.ndarray, str, dict[str, np.ndarray]]  # state, action, words, pictures
Rows = list[tuple[tuple[int, int], Seen]]  # (episode, row of it), what is in it


def ours(root: Path, kind: str) -> Rows:
    dataset = open_dataset(str(root))
    cache = frame_cache(str(root), root.with_name(f"{root.name}-{kind}"), None, kind=kind)
    rows = np.arange(len(dataset.state))
    frames = {c: np.asarray(pictures[rows]) for c, pictures in cache.frames.items()}
    if kind == "video":  # seeking, in another order
        order = np.random.default_rng(0).permutation(rows)
        for camera, pictures in cache.frames.items():
            again = np.asarray(pictures[order])
            np.testing.assert_array_equal(again, frames[camera][order], camera)
    tasks = cache.info.facts.tasks
    seen = [
        (
            cache.state[row],
            cache.action[row],
            tasks[cache.task[row]],
            {dataset.image_keys[camera]: pictures[row] for camera, pictures in frames.items()},
        )
        for row in rows
    ]
    return [(dataset.place(row), seen[row]) for row in rows]


def lerobots(root: Path, cameras: Sequence[str]) -> dict[tuple[int, int], Seen]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("made/set", root=root, video_backend="pyav", return_uint8=True)
    rows = {}
    for i in range(len(dataset.hf_dataset)):
        item = dataset[i]
        pictures = {}
        for key in cameras:
            image = item[key].permute(1, 2, 0).numpy()
            whole = image if image.dtype == np.uint8 else np.round(image * 255).astype(np.uint8)
            pictures[key] = whole
        place = (int(item["episode_index"]), int(item["frame_index"]))
        vectors = (item[STATE].numpy(), item[ACTION].numpy())
        rows[place] = (*vectors, item["task"], pictures)
    return rows


# -- checks


def check(case: Case, folder: Path) -> str | None:
    """What became of the case: "read", "refused", or None when it cannot be made. AssertionError,
    or whatever a reader raises, when an answer is wrong.
    """
    made = case.made()
    if made is None:
        return None
    root = made.write(folder / "set")
    read, refusal = _read_or_refused(made, root)
    if refusal is not None:
        assert "\n" not in str(refusal)
        assert case.may_be_refused(refusal), f"refused: {refusal}"
        if case.damage is not None and all(line.truth for line in made.lines):
            _check_repaired(made, root)
        return "refused"
    assert case.damage is None, "a damaged dataset was read"
    _check_episodes(made, root)
    if case.lerobot:
        theirs = lerobots(root, [camera.key for camera in made.cameras])
        same([(place, theirs[_place(made, place)]) for place, _ in read], read, "LeRobot")
    _check_goes_on(case, made, root)
    return "read"


def _read_or_refused(made: Made, root: Path) -> tuple[Rows, UserError | None]:
    """The rows, which are true and the same in each way of reading, or what refused them."""
    try:
        read = ours(root, "memory")
        compare(made, read)
        for kind in ("video", "disk"):
            same(read, ours(root, kind), kind)
    except UserError as error:
        return [], error
    return read, None


def _place(made: Made, place: tuple[int, int]) -> tuple[int, int]:
    """(episode, how many rows before it) -> (episode, frame_index)."""
    frames = sorted(p[1] for p, _ in made.expected() if p[0] == place[0])
    return place[0], frames[place[1]]


def compare(made: Made, read: Rows, unused: Collection[str] = ()) -> None:
    """The rows are those of the truth, in its order. unused: cameras that are left out."""
    expected = made.expected()
    assert len(read) == len(expected)
    for (place, seen), (true_place, truth) in zip(read, expected, strict=True):
        assert place[0] == true_place[0]
        shown = {key: n for key, n in truth.pictures.items() if key not in unused}
        compare_row(true_place, seen, replace(truth, pictures=shown))


def compare_row(place: tuple[int, int], seen: Seen, truth: Truth) -> None:
    np.testing.assert_array_equal(seen[0], truth.state, f"state of {place}")
    np.testing.assert_array_equal(seen[1], truth.action, f"action of {place}")
    assert seen[2] == one_form(truth.words), place
    assert set(seen[3]) == set(truth.pictures), place
    for key, number in truth.pictures.items():
        assert number_of(seen[3][key]) == number, (place, key)


def same(one: Any, other: Any, who: str) -> None:
    for (place, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0], f"{who}: state of {place}")
        np.testing.assert_array_equal(a[1], b[1], f"{who}: action of {place}")
        assert one_form(a[2]) == one_form(b[2]), (who, place)
        for key in a[3]:
            np.testing.assert_array_equal(a[3][key], b[3][key], f"{who}: {key} of {place}")


def _check_episodes(made: Made, root: Path) -> None:
    """As `mtdit replay` reads them, with the names of their numbers."""
    rows: dict[int, list[Truth]] = {}
    for (episode, _), truth in made.expected():
        rows.setdefault(episode, []).append(truth)
    for episode, truths in rows.items():
        read = read_episode(root, episode)
        np.testing.assert_array_equal(read.states, [t.state for t in truths])
        np.testing.assert_array_equal(read.actions, [t.action for t in truths])
        assert one_form(read.task) == one_form(truths[0].words)
    names = made.features[ACTION]["names"]
    if isinstance(names, list):
        assert [f"{joint}.pos" for joint in read.joints] == [
            n if n.endswith(".pos") else f"{n}.pos" for n in names
        ]


def _check_goes_on(case: Case, made: Made, root: Path) -> None:
    """A recording goes on with it, and leaves every earlier row what it is."""
    kinds = {camera.kind for camera in made.cameras}
    sizes = {c.key.removeprefix(IMAGES): c.size for c in made.cameras}
    before = ours(root, "memory")
    try:
        layout = DatasetLayout(made.fps, JOINTS, sizes, video=kinds != {"image"})
        writer = DatasetWriter(root, layout, resume=True, wait=True)
    except UserError:
        if case.resumes:
            raise
        return
    assert case.resumes, "--resume took what it cannot go on with"
    pose = np.arange(6, dtype=np.float32)
    episode = writer.begin("fold the other towel")
    for i in range(3):
        frames = {c: np.full((*size, 3), 90, np.uint8) for c, size in sizes.items()}
        episode.add(pose + i, pose - i, frames)
    writer.save_episode(episode)
    writer.close()
    after = ours(root, "memory")
    assert len(after) == len(before) + 3
    same(before, after[: len(before)], "after --resume")
    assert {row[1][2] for row in after[-3:]} == {"fold the other towel"}
    if case.lerobot and case.seed % 3 == 0:  # it takes half of the time
        assert len(lerobots(root, [camera.key for camera in made.cameras])) == len(after)


def _check_repaired(made: Made, root: Path) -> None:
    """`mtdit repair` refuses, or leaves rows that are all true."""
    try:
        repair(root)
        read = ours(root, "memory")
    except UserError:
        return
    known = {truth.state.tobytes(): (place, truth) for place, truth in made.expected()}
    for _, seen in read:
        compare_row(*_with_place(known[seen[0].tobytes()], seen))


def _with_place(found: tuple[Any, Truth], seen: Seen) -> tuple[Any, Seen, Truth]:
    return found[0], seen, found[1]


# -- the long run


def smaller(case: Case, folder: Path) -> Case:
    """The same case without the liberties that its failure does not need."""
    for name in case.liberties:
        fewer = Case(case.seed, tuple(n for n in case.liberties if n != name), case.damage)
        if fails(fewer, folder) is not None:
            case = fewer
    return case


def fails(case: Case, folder: Path) -> str | None:
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        check(case, place)
    except Exception:
        return traceback.format_exc(limit=-3)
    finally:
        shutil.rmtree(place)
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    words = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)
    logging.disable(logging.WARNING)  # LeRobot's, about what it ignores
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        quiet(folder)
        if words.case is not None:
            case = smaller(draw(words.case), folder)
            print(case, fails(case, folder) or "passes", sep="\n")
            return
        run_long(range(words.seed, words.seed + words.count), folder)


def quiet(folder: Path, change: Callable[[Any, str, Any], None] = setattr) -> None:
    """LeRobot and its libraries ask no server, and keep their copies in `folder`."""
    import datasets
    import huggingface_hub

    change(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    change(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


def run_long(seeds: Sequence[int], folder: Path) -> list[Case]:
    """Check the case of every seed; print failures and counts. Returns those that failed."""
    results, failed, begin = Counter[str](), list[Case](), time.monotonic()
    for seed in seeds:
        case, place = draw(seed), folder / str(seed)
        place.mkdir(parents=True)
        try:
            results[check(case, place) or "not possible"] += 1
        except Exception:
            results["FAILED"] += 1
            case = smaller(case, folder)
            failed.append(case)
            print(f"--- seed {seed}: {case}\n{fails(case, folder)}", flush=True)
        shutil.rmtree(place)
    print(f"seeds {seeds[0]} to {seeds[-1]}: {dict(results)}, {time.monotonic() - begin:.0f} s")
    return failed


if __name__ == "__main__":
    main()
