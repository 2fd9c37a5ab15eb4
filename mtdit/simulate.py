"""Records scripted demonstrations in the twin (simulated SO-101) as a LeRobotDataset v3.

A recorded frame is (observation at tick t, action commanded at tick t), the order in which the
control loop observes and commands. Positions are rounded to the servos' ticks, as a real arm
reports them. Physics, tasks and the scripted expert are in `mtdit_robots.twin`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import av.logging
import datasets
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import CAMERAS, World

FPS = 30
ROBOT_TYPE = "so_follower"
NOISE_RAD = 0.02  # on every other episode: shows how to return to the path (DART)
MOST_FAILURES = 0.5  # share of the attempts, checked after FEWEST_ATTEMPTS
FEWEST_ATTEMPTS = 10

# x264 is 5 times faster than SVT-AV1 here. A key frame every second frame is LeRobot's choice; it
# keeps random access cheap.
ENCODER = {"vcodec": "h264", "pix_fmt": "yuv420p", "g": 2, "crf": 18, "preset": "veryfast"}
LONGEST_EPISODE = 4096  # frames that may wait for the encoder, so that it never drops one

Frame = dict[str, Any]  # feature -> value, as LeRobotDataset.add_frame takes it
Progress = Callable[[int, int], None]  # episodes done, episodes wanted


@dataclass
class SimulateReport:
    """What was recorded. kept, failed: episodes per task; failed ones are not in the dataset."""

    out: Path
    kept: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0  # that the recording took

    def summary(self) -> str:
        """One line per task and one for the total."""
        width = max(len(task) for task in self.kept)
        lines = [
            f"{task:{width}}  {n} kept, {self.failed[task]} failed" for task, n in self.kept.items()
        ]
        total = sum(self.kept.values())
        return "\n".join(
            [
                *lines,
                f"{total} episodes, {self.frames} frames in {self.seconds:.0f} s -> {self.out}",
            ]
        )


def simulate(
    tasks: Sequence[str],
    episodes: int,
    out: Path,
    seed: int = 0,
    image_size: tuple[int, int] = (64, 64),
    noise_rad: float = NOISE_RAD,
    on_progress: Progress = lambda done, total: None,
) -> SimulateReport:
    """Records `episodes` successful demonstrations of each task, alternating between the tasks.

    Attempt k of each task has the scene of seed + k, so equal arguments give equal datasets.
    image_size: (height, width), even. noise_rad: standard deviation of the noise added to the
    commands of every other attempt, in rad; the recorded actions are without it. `out` appears
    only when the dataset is complete. UserError: unknown task, existing folder, odd image size, or
    an expert that fails too often.
    """
    wanted = [find_task(task).name for task in tasks]
    _check(wanted, episodes, out, image_size)
    report = SimulateReport(out, dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0))
    began = monotonic()
    _hush()
    with _new_folder(out) as partial:
        dataset, world = _create(partial, out.name, image_size), World(find_task("open the drawer"))
        world.energise()
        try:
            for task in (task for _ in range(episodes) for task in wanted):
                frames = _record_success(world, task, seed, image_size, noise_rad, report)
                _save(dataset, frames)
                report.kept[task] += 1
                report.frames += len(frames)
                on_progress(sum(report.kept.values()), episodes * len(wanted))
        finally:
            dataset.finalize()
            world.close()
    report.seconds = monotonic() - began
    return report


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that is renamed to `out` when the block succeeds, and removed otherwise."""
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def record(world: World, noise_rad: float, image_size: tuple[int, int]) -> list[Frame]:
    """Runs one demonstration of the world's task and returns its frames, successful or not."""
    frames = []
    for step in demonstrate(world, noise_rad):
        images = {IMAGES + camera: world.render(camera, *image_size) for camera in CAMERAS}
        state, action = world.positions().astype(np.float32), step.action.astype(np.float32)
        frames.append({STATE: state, ACTION: action, **images, "task": world.task.name})
        world.command(step.sent)
        world.step_tick()
    return frames


def _record_success(
    world: World,
    task: str,
    seed: int,
    image_size: tuple[int, int],
    noise_rad: float,
    report: SimulateReport,
) -> list[Frame]:
    """Attempts the task until one attempt succeeds; failures are counted in the report."""
    while True:
        attempt = report.kept[task] + report.failed[task]
        world.reset(find_task(task), seed + attempt)
        frames = record(world, noise_rad if attempt % 2 else 0.0, image_size)
        if world.success():
            return frames
        report.failed[task] += 1
        if attempt >= FEWEST_ATTEMPTS and report.failed[task] > MOST_FAILURES * attempt:
            raise UserError(
                f"the scripted expert failed {report.failed[task]} of {attempt + 1} attempts at "
                f"{task!r}: use a smaller noise_rad"
            )


def _check(tasks: Sequence[str], episodes: int, out: Path, image_size: tuple[int, int]) -> None:
    if not tasks:
        raise UserError("no task to record: name at least one, e.g. --task 'open the drawer'")
    if len(set(tasks)) < len(tasks):
        raise UserError("a task is named twice: name each one once and ask for more episodes")
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another --out or remove it")
    if any(side < 16 or side % 2 for side in image_size):
        raise UserError(
            f"image size {image_size[0]}x{image_size[1]} cannot be encoded: "
            "use even numbers of 16 or more"
        )


def _create(root: Path, name: str, image_size: tuple[int, int]) -> LeRobotDataset:
    names = [f"{joint}.pos" for joint in JOINTS]
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    image = {"dtype": "video", "shape": (*image_size, 3), "names": ["height", "width", "channels"]}
    features = {ACTION: vector, STATE: vector, **{IMAGES + camera: image for camera in CAMERAS}}
    return LeRobotDataset.create(
        repo_id=f"mtdit/{name}",
        fps=FPS,
        features={name: dict(feature) for name, feature in features.items()},
        root=root,
        robot_type=ROBOT_TYPE,
        rgb_encoder=RGBEncoderConfig(**ENCODER),
        video_backend="pyav",
        streaming_encoding=True,
        encoder_queue_maxsize=LONGEST_EPISODE,
        encoder_threads=1,
    )


def _hush() -> None:
    """Silences the encoder's statistics and the progress bar that every episode would print."""
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()


def _save(dataset: LeRobotDataset, frames: list[Frame]) -> None:
    for frame in frames:
        dataset.add_frame(dict(frame))
    dataset.save_episode()
