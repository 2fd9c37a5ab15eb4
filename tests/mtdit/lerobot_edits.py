"""What LeRobot's own tools make of a recording of ours: chains of edits, with all rows checked.

python tests/mtdit/lerobot_edits.py 100 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset_cases import compare_row, ours, quiet
from made_dataset import IMAGES, JOINTS, TASKS, Truth, picture

from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.text import first_line

SIZE = (32, 48)


@dataclass
class Edited:
    """A dataset, and what its rows are: the truth of each by the bytes of its state."""

    folder: Path
    rng: np.random.Generator
    layout: DatasetLayout
    root: Path
    episodes: list[list[Truth]] = field(default_factory=list)
    numbers: Any = None
    steps: list[str] = field(default_factory=list)

    def place(self) -> Path:
        return self.folder / f"step-{len(self.steps)}-{self.rng.integers(10**9)}"

    def dataset(self, root: Path | None = None) -> Any:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return LeRobotDataset("made/set", root=root or self.root, video_backend="pyav")

    def taken(self) -> list[Truth]:
        """A new episode."""
        words = str(self.rng.choice(TASKS))
        vectors = (self.rng.integers(0, 800, (int(self.rng.integers(4, 9)), 2, 6)) / 8).astype("f4")
        keys = [IMAGES + camera for camera in self.layout.cameras]
        return [Truth(s, a, words, {key: next(self.numbers) for key in keys}) for s, a in vectors]


def begun(folder: Path, rng: np.random.Generator) -> Edited:
    cameras = dict.fromkeys(rng.permutation(["top", "wrist"])[: rng.integers(0, 3)].tolist(), SIZE)
    layout = DatasetLayout(30, JOINTS, cameras, video=bool(rng.integers(3)))
    edited = Edited(folder, rng, layout, folder / "begun")
    # of one mean colour: a few pictures of noise would not tell an episode's (spot_check)
    numbers = [number for number in range(2**16) if number.bit_count() == 8]
    edited.numbers = iter(rng.permutation(numbers).tolist())
    return edited


# -- edits


def record(edited: Edited) -> None:
    """Our recorder goes on with it, or begins it."""
    writer = DatasetWriter(edited.root, edited.layout, resume=True, crf=10, wait=True)
    for _ in range(int(edited.rng.integers(1, 4))):
        truths = edited.taken()
        episode = writer.begin(truths[0].words)
        for truth in truths:
            shown = {c: picture(truth.pictures[IMAGES + c], SIZE) for c in edited.layout.cameras}
            episode.add(truth.state, truth.action, shown)
        writer.save_episode(episode)
        edited.episodes.append(truths)
    writer.close()


def record_with_lerobot(edited: Edited) -> None:
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    sharp = RGBEncoderConfig(vcodec="h264", crf=10, g=2)
    dataset = LeRobotDataset.resume("made/set", root=edited.root, rgb_encoder=sharp)
    for _ in range(int(edited.rng.integers(1, 3))):
        truths = edited.taken()
        for truth in truths:
            shown = {key: picture(number, SIZE) for key, number in truth.pictures.items()}
            vectors = {"observation.state": truth.state, "action": truth.action}
            dataset.add_frame({**vectors, **shown, "task": truth.words})
        dataset.save_episode()
        edited.episodes.append(truths)
    dataset.finalize()


def delete(edited: Edited) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes

    count = len(edited.episodes)
    if count < 2:
        return
    gone = edited.rng.permutation(count)[: edited.rng.integers(1, count)].tolist()
    place = edited.place()
    delete_episodes(edited.dataset(), gone, place, "made/set")
    edited.root = place
    edited.episodes = [e for i, e in enumerate(edited.episodes) if i not in gone]


def split(edited: Edited) -> None:
    from lerobot.datasets.dataset_tools import split_dataset

    count = len(edited.episodes)
    if count < 2:
        return
    order = edited.rng.permutation(count).tolist()
    cut = int(edited.rng.integers(1, count))
    place = edited.place()
    split_dataset(edited.dataset(), {"one": order[:cut], "other": order[cut:]}, place)
    edited.root = place / "one"
    edited.episodes = [edited.episodes[i] for i in sorted(order[:cut])]


def merge(edited: Edited) -> None:
    """With another recording, before or behind it."""
    from lerobot.datasets.dataset_tools import merge_datasets

    other = replace(edited, root=edited.place(), episodes=[])
    record(other)
    pair = [edited, other] if edited.rng.integers(2) else [other, edited]
    place = edited.place()
    together = bool(edited.rng.integers(2))
    merge_datasets(
        [each.dataset() for each in pair],
        "made/set",
        place,
        concatenate_videos=together,
        concatenate_data=bool(edited.rng.integers(2)),
    )
    edited.root, edited.episodes = place, [*pair[0].episodes, *pair[1].episodes]


def reword(edited: Edited) -> None:
    from lerobot.datasets.dataset_tools import modify_tasks

    number = int(edited.rng.integers(len(edited.episodes)))
    dataset = edited.dataset()
    modify_tasks(dataset, episode_tasks={number: "wave"})
    edited.episodes[number] = [replace(t, words="wave") for t in edited.episodes[number]]


def without_a_camera(edited: Edited) -> None:
    from lerobot.datasets.dataset_tools import remove_feature

    if len(edited.layout.cameras) < 2:
        return
    gone = str(edited.rng.choice(list(edited.layout.cameras)))
    place = edited.place()
    remove_feature(edited.dataset(), IMAGES + gone, place, "made/set")
    cameras = {c: size for c, size in edited.layout.cameras.items() if c != gone}
    edited.root, edited.layout = place, replace(edited.layout, cameras=cameras)
    keys = [IMAGES + camera for camera in cameras]
    edited.episodes = [
        [replace(t, pictures={key: t.pictures[key] for key in keys}) for t in episode]
        for episode in edited.episodes
    ]


def statistics_again(edited: Edited) -> None:
    from lerobot.datasets.dataset_tools import recompute_stats

    recompute_stats(edited.dataset())


EDITS: tuple[Callable[[Edited], None], ...] = (
    record,
    record_with_lerobot,
    delete,
    split,
    merge,
    reword,
    without_a_camera,
    statistics_again,
)


def check(edited: Edited) -> None:
    expected = [truth for episode in edited.episodes for truth in episode]
    for kind in ("memory", "video"):
        read = ours(edited.root, kind)
        assert len(read) == len(expected)
        for (place, seen), truth in zip(read, expected, strict=True):
            compare_row(place, seen, truth)


def chain(seed: int, folder: Path) -> str:
    """A recording, and up to five edits, until one of LeRobot's tools gives up. AssertionError,
    with its steps: a row is wrong. Returns the steps that were made.
    """
    edited = begun(folder, np.random.default_rng(seed))
    steps = [record, *edited.rng.choice(len(EDITS), int(edited.rng.integers(1, 6)))]
    try:
        for step in steps:
            edit = step if callable(step) else EDITS[step]
            edited.steps.append(edit.__name__)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    edit(edited)
            except Exception as error:
                if edit is record or len(edited.steps) < 3:
                    raise
                edited.steps[-1] += f" ({first_line(error, 60)})"
                break
            check(edited)
    except Exception as error:
        error.add_note(f"seed {seed}: {', '.join(edited.steps)}; {edited.layout}")
        raise
    return ", ".join(edited.steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        quiet(Path(scratch))
        run_chains(words.seed, words.count, Path(scratch))


def run_chains(first: int, count: int, folder: Path) -> int:
    """How many of the chains failed; prints each."""
    failed = 0
    for seed in range(first, first + count):
        place = folder / str(seed)
        place.mkdir(parents=True)
        try:
            print(seed, chain(seed, place), flush=True)
        except Exception:
            failed += 1
            print(f"--- seed {seed}\n{traceback.format_exc(limit=-4)}", flush=True)
        shutil.rmtree(place)
    print(f"{count} chains from seed {first}: {failed} failed")
    return failed


if __name__ == "__main__":
    main()
