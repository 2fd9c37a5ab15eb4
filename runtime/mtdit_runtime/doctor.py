"""What works on this computer, what does not, and the line that mends it.

Knows how to try things: the interpreter, extras, inference backends, the twin's renderer, six servos on a port. Refuses
to change or move anything. Every check is a small function that gives one or more `Check`s.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus, BusError
from mtdit_robots.so101 import IDS
from mtdit_robots.sts3215 import MODEL_NUMBER

OK, WARN, FAIL = "ok", "warn", "fail"
MIN_FREE_GB = 2.0
MAX_SERVO_C = 55  # the servo protects itself at 70; a gripper that idles this hot is squeezing something

# extra -> a module of each package it brings
EXTRAS = {
    "runtime": ("onnxruntime", "cv2", "tokenizers"),
    "twin": ("mujoco",),
    "train": ("torch", "lerobot", "transformers", "accelerate", "open_clip"),
    "export": ("onnx", "onnxscript"),
}


@dataclass(frozen=True)
class Check:
    """One line of the table. `remedy` is empty when there is nothing to do."""

    id: str
    status: str  # ok | warn | fail
    finding: str
    remedy: str = ""


def doctor(robot: str = "none", port: str | None = None) -> list[Check]:
    """Run every check that applies to `robot`: none, twin, or so101 (which needs `port`)."""
    checks = [check_python(), check_cpu(), check_disk(Path()), *check_extras(robot), *check_backends()]
    if robot != "so101":
        checks.append(check_renderer(needed=robot == "twin"))
    if robot == "so101":
        checks.extend(check_servos(port) if port else [_no_port()])
    return checks


def check_python() -> Check:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", OK, f"{version} on {platform.machine()}")
    return Check("python", WARN, f"{version} is untested", "use Python 3.10 to 3.13")


def check_cpu() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    finding = f"{cores} cores, load {os.getloadavg()[0]:.1f}"
    if os.getloadavg()[0] < cores:
        return Check("cpu", OK, finding)
    return Check("cpu", WARN, finding, "stop other programs before a run: late ticks make the arm jerk")


def check_disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(folder).free / 1e9
    finding = f"{free_gb:.0f} GB free here"
    return Check("disk", OK, finding) if free_gb > MIN_FREE_GB else Check("disk", WARN, finding, "free some space")


def check_extras(robot: str) -> Iterator[Check]:
    """Which extras are complete. Looks modules up without importing them: torch alone takes seconds to load."""
    needed = {"twin": ("runtime", "twin"), "so101": ("runtime",)}.get(robot, ())
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        finding = f"without {', '.join(missing)}" if missing else "installed"
        status = FAIL if missing and extra in needed else OK
        yield Check(f"extra {extra}", status, finding, f'pip install "mtdit[{extra}]"' if missing else "")


def check_backends() -> Iterator[Check]:
    """What ONNX Runtime and TensorRT offer. An offered provider is proved only by `mtdit bench` on a bundle."""
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        names = (name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        yield Check("onnxruntime", OK, f"{onnxruntime.__version__}, offers {', '.join(names)}")
    if importlib.util.find_spec("tensorrt") is not None:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]

        yield Check("tensorrt", OK, str(tensorrt.__version__))
    else:
        yield Check("tensorrt", OK, "not installed", "for NVIDIA GPUs; on a Jetson: apt install python3-libnvinfer")


def check_renderer(needed: bool) -> Check:
    """Which renderer draws the twin's cameras, and how to get a quicker one."""
    if importlib.util.find_spec("mujoco") is None:
        return Check("renderer", FAIL if needed else OK, "the twin is not installed", 'pip install "mtdit[twin]"')
    from mtdit_robots.twin.render import choose_renderer

    choice = choose_renderer()
    return Check("renderer", WARN if choice.fix else OK, f"{choice.name}: {choice.reason}", choice.fix or "")


def check_servos(port: str) -> Iterator[Check]:
    """Read from six servos what they say of themselves. Moves nothing and writes nothing."""
    try:
        bus = Bus(port)
    except UserError as error:
        yield Check("port", FAIL, f"{port} does not open", str(error))
        return
    with bus:
        yield Check("port", OK, f"{port} at 1 Mbit/s")
        for joint, servo in IDS.items():
            yield _check_servo(bus, joint, servo)


def _check_servo(bus: Bus, joint: str, servo: int) -> Check:
    name = f"servo {servo} {joint}"
    try:
        model, tenths = bus.read(servo, "Model_Number"), bus.read(servo, "Present_Voltage")
        heat_c, words = bus.read(servo, "Present_Temperature"), bus.ping(servo)
    except BusError:
        return Check(name, FAIL, "no answer", "check its cable, its id, and the power supply")
    finding = f"model {model}, {tenths / 10:.1f} V, {heat_c} C"
    if model != MODEL_NUMBER:
        return Check(name, FAIL, finding, f"an SO-101 has STS3215 servos (model {MODEL_NUMBER})")
    if words:
        return Check(name, FAIL, f"{finding}, reports {', '.join(words)}", "switch the arm's power off and on")
    return Check(name, WARN if heat_c > MAX_SERVO_C else OK, finding, "let it cool" if heat_c > MAX_SERVO_C else "")


def _no_port() -> Check:
    ports = [*glob.glob("/dev/serial/by-id/*"), *glob.glob("/dev/ttyACM*"), *glob.glob("/dev/ttyUSB*")]
    found = f"pass --port {sorted(ports)[0]}" if ports else "plug in the arm's USB cable, then pass --port"
    return Check("port", FAIL, "no port was given", found)


def healthy(checks: list[Check]) -> bool:
    """Whether nothing that the asked robot needs is broken."""
    return all(check.status != FAIL for check in checks)


def to_dict(checks: list[Check]) -> dict[str, Any]:
    return {"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}
