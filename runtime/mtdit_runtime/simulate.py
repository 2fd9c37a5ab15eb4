"""Records scripted demonstrations in the twin (simulated SO-101) as a LeRobotDataset v3.

A recorded frame is (observation at tick t, action commanded at tick t), the order in which the
control loop observes and commands. Positions are rounded to the servos' ticks, as a real arm
reports them. Physics, tasks and the scripted expert are in `mtdit_robots.twin`; the files are
written by `mtdit_runtime.recording.dataset_writer`, without torch or LeRobot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from mtdit_robots.errors import UserError
from mtdit_robots.extras import require
from mtdit_robots.files import new_folder
from mtdit_robots.robot import Frame, Positions
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.render import load_mujoco
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import CAMERAS, World
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_parquet import import_parquet
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.episode import Episode
from mtdit_runtime.recording.video_encoder import find_codec

FPS = 30
CRF = 18  # finer than a recording's: the twin's frames are small
NOISE_RAD = 0.02  # on every other episode: shows how to return to the path (DART)
MOST_FAILURES = 0.5  # share of the attempts, checked after FEWEST_ATTEMPTS
FEWEST_ATTEMPTS = 10

Moment = tuple[Positions, Positions, dict[str, Frame]]  # state, action, camera -> frame
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


def check_installed() -> None:
    """UserError that names all packages that `simulate` needs and that are not installed."""
    require("simulate", "mujoco", "pyarrow", "av")
    load_mujoco()
    find_codec("h264")
    import_parquet()


def simulate(
    tasks: str | Sequence[str],
    episodes: int,
    out: Path | str,
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

        mtdit.simulate(["open the drawer"], episodes=50, out="my-dataset")
    """
    names = [tasks] if isinstance(tasks, str) else tasks
    wanted, out = [find_task(name).name for name in names], Path(out)
    _check(wanted, episodes, out, image_size)
    check_installed()
    report = SimulateReport(out, dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0))
    began = monotonic()
    layout = DatasetLayout(FPS, JOINTS, dict.fromkeys(CAMERAS, image_size))
    with (
        new_folder(out.absolute(), replace=False) as partial,
        closing(DatasetWriter(partial, layout, crf=CRF, wait=True)) as dataset,
        closing(World(find_task("open the drawer"))) as world,
    ):
        world.energise()
        for task in (task for _ in range(episodes) for task in wanted):
            episode = _record_success(world, dataset, task, seed, noise_rad, report)
            dataset.save_episode(episode)
            report.kept[task] += 1
            report.frames += len(episode)
            on_progress(sum(report.kept.values()), episodes * len(wanted))
    report.seconds = monotonic() - began
    return report


def record(world: World, noise_rad: float, image_size: tuple[int, int]) -> Iterator[Moment]:
    """Runs one demonstration of the world's task, successful or not, and yields every tick of it.

    Each is what the robot observes and the action that follows: positions (J,), action (J,) and
    camera -> (*image_size, 3) uint8 RGB.
    """
    for step in demonstrate(world, noise_rad):
        frames = {camera: world.render(camera, *image_size) for camera in CAMERAS}
        yield world.positions(), step.action, frames
        world.command(step.sent)
        world.step_tick()


def _record_success(
    world: World,
    dataset: DatasetWriter,
    task: str,
    seed: int,
    noise_rad: float,
    report: SimulateReport,
) -> Episode:
    """Attempts the task until one attempt succeeds; failures are counted in the report."""
    image_size = dataset.layout.cameras[CAMERAS[0]]
    while True:
        attempt = report.kept[task] + report.failed[task]
        world.reset(find_task(task), seed + attempt)
        episode = dataset.begin(task)
        with ExitStack() as unsaved:
            unsaved.callback(episode.discard)
            for moment in record(world, noise_rad if attempt % 2 else 0.0, image_size):
                episode.add(*moment)
            if world.success():
                unsaved.pop_all()
                return episode
        report.failed[task] += 1
        if attempt >= FEWEST_ATTEMPTS and report.failed[task] > MOST_FAILURES * attempt:
            raise UserError(
                f"the scripted expert failed {report.failed[task]} of {attempt + 1} attempts at "
                f"{task!r}: use a smaller noise_rad"
            )


def _check(tasks: Sequence[str], episodes: int, out: Path, image_size: tuple[int, int]) -> None:
    if not tasks:
        raise UserError("no task to record: name at least one, e.g. 'open the drawer'")
    if len(set(tasks)) < len(tasks):
        raise UserError("a task is named twice: name each one once and ask for more episodes")
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another folder or remove it")
    if any(side < 16 or side % 2 for side in image_size):
        raise UserError(
            f"image size {image_size[0]}x{image_size[1]} cannot be encoded: "
            "use even numbers of 16 or more"
        )
