"""What works on this computer, what does not, and the line that mends it.

Knows how to look: Python, extras, backends, the Jetson's releases and power modes, disk and clock;
the arm and the cameras have modules of their own. Refuses to change or move anything. Every check
is a small function that gives one or more `Check`s. Files of the system are read below a root that
tests may choose.
"""

from __future__ import annotations

import base64
import glob
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_runtime import doctor_arm, doctor_cameras
from mtdit_runtime.bundle import Bundle, Manifest, open_bundle
from mtdit_runtime.checks import FAIL, OK, WARN, Check, healthy, judged, to_dict
from mtdit_runtime.words import plain

__all__ = ["Check", "Questions", "doctor", "healthy", "to_dict"]

MIN_FREE_GB = 2.0
MAX_BEHIND_S = (
    24 * 3600.0
)  # a clock behind its own software: nothing has set it since the computer was switched on

# extra -> a module of each package it brings
EXTRAS = {
    "runtime": ("onnxruntime", "cv2", "tokenizers"),
    "record": ("pyarrow", "av"),
    "twin": ("mujoco",),
    "train": ("torch", "lerobot", "transformers", "accelerate", "open_clip"),
    "export": ("onnx", "onnxscript"),
}

# L4T release -> what people know it by, and what is wrong with it. Source: NVIDIA's release notes,
# community reports.
JETPACKS = {
    "36.4.0": "JetPack 6.1", "36.4.3": "JetPack 6.2", "36.4.4": "JetPack 6.2.1", "36.4.7": "JetPack 6.2.1",
    "36.5.0": "JetPack 6.2.2", "36.5.2": "JetPack 6.2.3", "38.2.0": "JetPack 7.0", "38.4.0": "JetPack 7.1",
    "39.2.0": "JetPack 7.2", "39.2.1": "JetPack 7.2.1",
}  # fmt: skip
BAD_L4T = {
    "36.4.7": "CUDA fails to allocate memory that is free: sudo apt update && sudo apt dist-upgrade to 36.5.0"
}
OLDEST_L4T = (36, 4)  # TensorRT 10.3, the oldest our graphs are built with

# y = x + x as ONNX, opset 17: the smallest graph that proves that a backend runs
DOUBLE = base64.b64decode(
    b"CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAR"
)


@dataclass(frozen=True)
class Questions:
    """What is to be looked at. port, calibration, cameras (name -> source): of a real arm; bundle:
    the policy.
    """

    robot: str = "none"  # none | twin | so101
    port: str | None = None
    calibration: Path | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    bundle: Path | None = None
    servo_volts: float | None = None  # 7.4 or 12, as printed on the servos
    cycles: int = 1000  # bus exchanges whose errors are counted
    camera_s: float = 3.0
    patience_s: float = 0.05  # of a servo
    bus: str = "own"  # or sdk
    root: Path = Path("/")


def doctor(asked: Questions | None = None) -> list[Check]:
    """Run every check that applies, the computer's first."""
    q = asked or Questions()
    checks = [
        check_python(),
        check_cpu(),
        check_disk(Path()),
        check_clock(q.root),
        *check_jetson(q.root),
    ]
    checks += [*check_extras(q.robot), *check_backends()]
    bundle, found = _bundle(q.bundle)
    checks += found
    manifest = bundle.manifest if bundle else None
    if q.robot != "so101":
        checks.append(check_renderer(needed=q.robot == "twin"))
    elif q.port is None:
        checks.append(_no_port())
    else:
        checks += doctor_arm.check_arm(
            q.port, q.calibration, manifest, q.servo_volts, q.cycles, q.patience_s, q.bus
        )  # fmt: skip
    if q.cameras:
        checks += doctor_cameras.check_cameras(q.cameras, bundle, q.camera_s)
    elif q.robot == "so101" and manifest and manifest.cameras:
        checks.append(_no_cameras(manifest))
    return checks


def check_python() -> Check:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", OK, f"{version} on {platform.machine()}")
    return Check("python", WARN, f"{version} is untested", "use Python 3.10 to 3.13")


def check_cpu() -> Check:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    finding = f"{cores} cores, load {os.getloadavg()[0]:.1f}"
    late = "stop other programs before a run: late ticks make the arm jerk"
    return judged("cpu", os.getloadavg()[0] >= cores, finding, late)


def check_disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(folder).free / 1e9
    return judged("disk", free_gb <= MIN_FREE_GB, f"{free_gb:.0f} GB free here", "free some space")


def check_clock(root: Path, now_s: float | None = None) -> Check:
    """A computer without a battery wakes up in the past: certificates fail, and logs lie."""
    now_s = time.time() if now_s is None else now_s
    behind_s = Path(__file__).stat().st_mtime - now_s
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    remedy = "connect to a network, then `sudo timedatectl set-ntp true`"
    if behind_s > MAX_BEHIND_S:
        return Check("clock", FAIL, f"{date}, which is before this program was installed", remedy)
    timesync = root / "run/systemd/timesync"
    waiting = timesync.is_dir() and not (timesync / "synchronized").exists()
    return judged("clock", waiting, date + (", not synchronised yet" if waiting else ""), remedy)


def check_jetson(root: Path) -> Iterator[Check]:
    """Release and power mode; nothing on another computer."""
    try:
        text = (root / "etc/nv_tegra_release").read_text()
    except OSError:
        return
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text)
    if match is None:
        yield Check(
            "jetpack",
            WARN,
            f"unknown release {text[:40]!r}",
            "compare with NVIDIA's list of L4T releases",
        )
        return
    release = ".".join(match.groups())
    finding = f"L4T {release} ({JETPACKS.get(release, 'a JetPack unknown here')})"
    if release in BAD_L4T:
        yield Check("jetpack", FAIL, finding, BAD_L4T[release])
    else:
        old = tuple(map(int, match.groups()[:2])) < OLDEST_L4T
        yield judged(
            "jetpack", old, finding, "flash JetPack 6.1 or later: TensorRT is too old here"
        )
    yield _power_mode(root)


def power_mode(root: Path = Path("/")) -> str | None:
    """A Jetson's power mode, in words; None on another computer."""
    return _power_mode(root).finding if (root / "etc/nv_tegra_release").is_file() else None


def _power_mode(root: Path) -> Check:
    """nvpmodel's own files: the number of the mode, and the modes' names."""
    try:
        number = re.search(r"pmode:(\d+)", (root / "var/lib/nvpmodel/status").read_text())
        names = dict(
            re.findall(r"POWER_MODEL ID=(\d+) NAME=(\S+)", (root / "etc/nvpmodel.conf").read_text())
        )
    except OSError as error:
        return Check(
            "power", WARN, f"unknown ({error.filename} cannot be read)", "see `sudo nvpmodel -q`"
        )
    mode = str(int(number[1])) if number else "?"
    fastest = next((n for n, name in names.items() if name.startswith("MAXN")), "0")
    slow = not names.get(mode, "").startswith("MAXN")
    remedy = f"for the shortest latency: sudo nvpmodel -m {fastest} && sudo jetson_clocks"
    return judged("power", slow, f"mode {mode} ({names.get(mode, 'unnamed')})", remedy)


def check_extras(robot: str) -> Iterator[Check]:
    """Which extras are complete. Looks modules up without importing them: torch alone takes seconds
    to load.
    """
    needed = {"twin": ("runtime", "twin"), "so101": ("runtime",)}.get(robot, ())
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        finding = f"without {', '.join(missing)}" if missing else "installed"
        status = FAIL if missing and extra in needed else OK
        yield Check(
            f"extra {extra}", status, finding, f'pip install "mtdit[{extra}]"' if missing else ""
        )


def check_backends() -> Iterator[Check]:
    """What ONNX Runtime and TensorRT offer, and which of it really runs a graph here."""
    if importlib.util.find_spec("onnxruntime") is not None:
        yield _check_onnxruntime()
    yield _check_tensorrt()


def _check_onnxruntime() -> Check:
    import onnxruntime

    offered = [
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    ]
    tried = [name for name in offered if name in ("CPU", "CUDA")]
    broken = {name: problem for name in tried if (problem := _cannot_run(onnxruntime, name))}
    finding = f"{onnxruntime.__version__}, runs on {', '.join(n for n in tried if n not in broken) or 'nothing'}"
    if not broken:
        return Check("onnxruntime", OK, finding)
    finding += "; not on " + "; ".join(f"{name} ({problem})" for name, problem in broken.items())
    status = FAIL if "CPU" in broken else WARN
    return Check(
        "onnxruntime",
        status,
        finding,
        'pip install --force-reinstall "mtdit[gpu]", and check `nvidia-smi`',
    )


def _cannot_run(ort: Any, name: str) -> str:
    """Why a provider does not double a number; empty when it does. An offered provider may fall
    back to the CPU.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its complaints are what we report ourselves
    try:
        session = ort.InferenceSession(DOUBLE, options, providers=[f"{name}ExecutionProvider"])
        (doubled,) = session.run(None, {"x": np.array([21], np.float32)})
    except Exception as error:  # whatever its C++ side raises
        return (str(error).splitlines() or [type(error).__name__])[0][:120]
    if session.get_providers()[0] != f"{name}ExecutionProvider":
        return "its libraries do not load, it falls back to the CPU"
    return "" if doubled[0] == 42 else f"it says that 21 + 21 is {doubled[0]}"


def _check_tensorrt() -> Check:
    if importlib.util.find_spec("tensorrt") is None:
        return Check(
            "tensorrt",
            OK,
            "not installed",
            "for NVIDIA GPUs; on a Jetson: apt install python3-libnvinfer",
        )
    from mtdit_runtime.engine import this_device

    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]

        name = this_device().gpu
        tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    except (UserError, ImportError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return Check(
            "tensorrt",
            WARN,
            f"installed, does not run: {reason}",
            "check `nvidia-smi` and the driver",
        )
    return Check("tensorrt", OK, f"{tensorrt.__version__} on {name}")


def _bundle(folder: Path | None) -> tuple[Bundle | None, list[Check]]:
    """The bundle, and whether this computer runs it."""
    if folder is None:
        return None, []
    from mtdit_runtime.engine import choose_engines
    from mtdit_runtime.run import warm_up_s

    try:
        bundle = open_bundle(folder)
        engines = choose_engines(bundle)
        latency_s = warm_up_s(bundle, engines)
    except UserError as error:
        return None, [Check("bundle", FAIL, f"{folder} does not run here", str(error))]
    m = bundle.manifest
    too_slow = latency_s * m.fps > m.n_action_steps / 2
    finding = f"{plain(m.name)}: a chunk takes {latency_s * 1e3:.0f} ms, {engines.reason}"
    return bundle, [
        judged("bundle", too_slow, finding, "too slow for its rate: export with fewer --steps")
    ]


def check_renderer(needed: bool) -> Check:
    """Which renderer draws the twin's cameras, and how to get a quicker one."""
    if importlib.util.find_spec("mujoco") is None:
        return Check(
            "renderer",
            FAIL if needed else OK,
            "the twin is not installed",
            'pip install "mtdit[twin]"',
        )
    from mtdit_robots.twin.render import choose_renderer

    choice = choose_renderer()
    return Check(
        "renderer", WARN if choice.fix else OK, f"{choice.name}: {choice.reason}", choice.fix or ""
    )


def _no_port() -> Check:
    ports = [
        *glob.glob("/dev/serial/by-id/*"),
        *glob.glob("/dev/ttyACM*"),
        *glob.glob("/dev/ttyUSB*"),
    ]
    found = (
        f"pass --port {sorted(ports)[0]}"
        if ports
        else "plug in the arm's USB cable, then pass --port"
    )
    return Check("port", FAIL, "no port was given", found)


def _no_cameras(manifest: Manifest) -> Check:
    words = " ".join(
        f"--camera {camera.name}=/dev/video{i}" for i, camera in enumerate(manifest.cameras)
    )
    return Check(
        "cameras",
        WARN,
        "none was given, the policy needs them",
        f"pass {words}; see `mtdit find-cameras`",
    )
