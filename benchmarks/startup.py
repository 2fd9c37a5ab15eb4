"""Seconds from `mtdit run` to torque on and to the first goal, on virtual servos.

    python benchmarks/startup.py [--bundle tests/data/demo.mtdit] [--runs 7] [--out table.md]

Each run is a process of its own that drives an SO-101 of virtual servos behind a pseudo-terminal;
films take the place of the cameras. The servos note when torque is switched on and when the first
goal of the policy arrives. `python -c pass`, the import of the runtime and `mtdit doctor --fast`
take their turns; the first shows a busy moment of the machine. memory is the peak of the process
(RSS). The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtdit_robots.so101.calibration import save
from mtdit_robots.so101.joints import JOINTS, Ranges
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.chain import twin_calibration, twin_registers
from mtdit_runtime.bench import cpu_name
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink

ROOT = Path(__file__).parent.parent
TARGET_S = 3.0  # from the command to torque on
MARKS = ("torque", "goal", "memory")
COMMANDS = {
    "python": ["-c", "pass"],
    "import": ["-c", "import mtdit_runtime.run"],
    "doctor": ["-m", "mtdit.cli", "doctor", "--fast", "--json", "-"],
}


@dataclass
class Arm:
    """Six virtual servos in the pose where the bundle's demonstrations usually are, which follow at
    once. at: when torque was switched on and when the first goal after it came.
    """

    bundle: Bundle

    def __post_init__(self) -> None:
        self.at: dict[str, float] = {}
        self.calibration = twin_calibration()
        self.servos = twin_registers()
        own = [self.calibration[joint] for joint in JOINTS]
        low, high = (
            np.array([getattr(c, name) for c in own]) for name in ("range_min", "range_max")
        )
        ranges = Ranges(low, high, np.zeros(len(own), bool))
        manifest = self.bundle.manifest
        usual = dict(zip(manifest.state_joints, manifest.usual_positions, strict=True))
        for one, ticks in zip(own, ranges.ticks([usual[joint] for joint in JOINTS]), strict=True):
            self.servos[one.id].set_present(int(ticks) + one.homing_offset)
        self.bus = VirtualBus(self.servos, self._on_goal, self._before_read)

    def _before_read(self) -> None:
        if any(servo.torque_enabled for servo in self.servos.values()):
            self.at.setdefault("torque", time.monotonic())

    def _on_goal(self) -> None:
        self._before_read()
        if "torque" in self.at:
            self.at.setdefault("goal", time.monotonic())
        for servo in self.servos.values():
            if servo.torque_enabled:
                servo.set_present(servo.goal_actual_ticks)


def films(bundle: Bundle, folder: Path) -> list[str]:
    """A second of grey for every camera: the words of --camera."""
    words = []
    for camera in bundle.manifest.cameras:
        sink = VideoSink(
            folder / f"{camera.name}.mp4", 30, camera.height, camera.width, CODECS["h264"]
        )
        for _ in range(30):
            sink.write(np.full((camera.height, camera.width, 3), 90, np.uint8))
        sink.close()
        words += ["--camera", f"{camera.name}=file:{folder / camera.name}.mp4"]
    return words


def started(bundle: Bundle, cameras: list[str], folder: Path) -> dict[str, float]:
    """Seconds until torque and until the first goal, and the peak memory in MB, of one run."""
    arm = Arm(bundle)
    save(arm.calibration, folder / "arm.json")
    run = [sys.executable, "-m", "mtdit.cli", "run", "--bundle", str(bundle.folder)]
    run += ["--task", bundle.manifest.tasks[0], "--port", arm.bus.path, "--bus-timeout", "2"]
    run += ["--calibration", str(folder / "arm.json"), "--duration", "1", "--home-seconds", "0"]
    with arm.bus.serve_in_thread():
        began = time.monotonic()
        done = subprocess.run([*run, *cameras, "--json", "-"], capture_output=True, text=True)
    if done.returncode or MARKS[1] not in arm.at:
        raise SystemExit(f"{' '.join(run)} failed:\n{done.stderr[-2000:]}")
    took = {mark: at - began for mark, at in arm.at.items()}
    return {**took, "memory": json.loads(done.stdout)["peak_memory_mb"]}


def others() -> dict[str, float]:
    """Seconds that each of COMMANDS took."""
    took = {}
    for name, words in COMMANDS.items():
        began = time.monotonic()
        done = subprocess.run([sys.executable, *words], capture_output=True)
        took[name] = time.monotonic() - began
        if done.returncode not in (0, 1):  # 1: doctor found something
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr.decode()[-2000:]}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "tests/data/demo.mtdit")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, help="Also write the table to this file.")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        cameras = films(bundle, Path(scratch))
        started(bundle, cameras, Path(scratch))  # files come from the disk the first time
        turns = [
            {**others(), **started(bundle, cameras, Path(scratch))} for _ in range(options.runs)
        ]
    middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    least = {key: min(turn[key] for turn in turns) for key in turns[0]}
    lines = [
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{options.bundle.name}, {options.runs} runs, load average {os.getloadavg()[0]:.1f}",
        "",
        "| | median | least |",
        "|---|--:|--:|",
        *(
            f"| {what} | {middle[key]:.2f} s | {least[key]:.2f} s |"
            for key, what in (
                ("python", "`python -c pass`"),
                ("import", "`import mtdit_runtime.run`"),
                ("doctor", "`mtdit doctor --fast`"),
                ("torque", "`mtdit run` until torque is on"),
                ("goal", "`mtdit run` until the first goal"),
            )
        ),
        f"| peak memory | {middle['memory']:.0f} MB | {least['memory']:.0f} MB |",
    ]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")
    print(json.dumps({"median": middle, "least": least, "target_s": TARGET_S}))


if __name__ == "__main__":
    main()
