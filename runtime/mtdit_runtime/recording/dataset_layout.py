"""The files and features of a LeRobotDataset v3 (LeRobot `datasets/`, codebase_version v3.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_robots.units import DEGREES

ROBOT_TYPE = "so_follower"  # LeRobot's name for an SO-100 or SO-101 follower
ROBOT_TYPES = (ROBOT_TYPE, "so101_follower", "so100_follower")  # the last two before LeRobot 0.4.3
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
RECORDER = "meta/mtdit.json"  # ours, LeRobot ignores it: the unit of the positions
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
ASIDE = ".recording"  # temporary folder of unfinished episodes; readers ignore it
CHUNKS_SIZE = 1000
FEWEST_FRAMES = 2  # the statistics of one frame have no spread

INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
COUNTERS = ("total_episodes", "total_frames", "total_tasks", "splits")


@dataclass(frozen=True)
class DatasetLayout:
    """The features of a dataset, i.e. what every frame contains: positions and actions (J,) of the
    joints, and a picture (height, width, 3) of each camera.
    """

    fps: int
    joints: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]  # name -> (height, width)
    video: bool = True  # False: PNG images in the tables, lossless and 20 times larger
    robot_type: str = ROBOT_TYPE
    units: str = DEGREES  # of the body joints: degrees or normalized

    def features(self) -> dict[str, dict[str, Any]]:
        """The features as in info.json, in the order that LeRobot's recorder writes."""
        names = [f"{joint}.pos" for joint in self.joints]
        vector = {"dtype": "float32", "shape": [len(names)], "names": names}
        pictures = {
            IMAGES + camera: {
                "dtype": "video" if self.video else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            for camera, (height, width) in self.cameras.items()
        }
        numbers = {
            name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in INDICES.items()
        }
        return {ACTION: vector, STATE: dict(vector), **pictures, **numbers}

    def check(self) -> None:
        """Raise UserError for features that cannot be recorded."""
        if self.fps < 1:
            raise UserError(f"fps must be at least 1, got {self.fps}: use 30")
        for camera, (height, width) in self.cameras.items():
            if "/" in camera or not camera:
                raise UserError(
                    f"camera name {camera!r} cannot be a feature name: use letters, digits and _"
                )
            if self.video and (height % 2 or width % 2):
                raise UserError(
                    f"camera {camera!r} is {width}x{height}, "
                    "video needs an even width and height: choose another size"
                )
