"""Checks this computer, arm and cameras, and gives the fix for each problem.

This module checks Python, extras, a Jetson's release and power mode, disk, clock and the runs that
go on; `doctor.backends`, `doctor.arm` and `doctor.cameras` check the rest. Nothing is changed or
moved. Every check is a small function that gives one or more `Check`s. System files are read below
`root`, which tests set.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.errors import UserError
from mtdit_robots.extras import EXTRAS, fitting, install
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import Manifest
from mtdit_runtime.check import FAIL, OK, WARN, Check, judged
from mtdit_runtime.control.heartbeat import RUN_DIR, heartbeats, run_folder
from mtdit_runtime.doctor import arm
from mtdit_runtime.doctor import cameras as doctor_cameras
from mtdit_runtime.doctor.backends import check_backends, check_gpu
from mtdit_runtime.jetson import check_platform
from mtdit_runtime.run import run_units
from mtdit_runtime.text import printable

MIN_FREE_GB = 2.0
# How far the clock may be behind the date of mtdit's own files; more means that it was never set.
MAX_BEHIND_S = 24 * 3600.0


@dataclass(frozen=True)
class DoctorOptions:
    """What to check. port, calibration and cameras (by name) belong to a real arm; bundle is
    the policy.
    """

    robot: str = "none"  # none | twin | so101
    port: str | None = None
    calibration: Path | None = None
    cameras: Mapping[str, CameraOptions] = field(default_factory=dict)
    bundle: Path | None = None
    units: str | None = None  # degrees or normalized, for a bundle that does not say it
    servo_volts: float | None = None  # 7.4 or 12, as printed on the servos
    cycles: int = 1000  # bus reads in which lost replies are counted
    camera_s: float = 3.0  # how long each camera is watched
    bus_timeout_s: float = 0.05  # how long to wait for a servo's reply
    bus: str = "own"  # own | sdk
    fast: bool = False  # in less than 2 s: no port, no camera and no graph is opened
    root: Path = Path("/")


def doctor(options: DoctorOptions = DoctorOptions()) -> list[Check]:
    """Run all checks that apply, those of the computer first."""
    return _fast(options) if options.fast else _all(options)


def _fast(options: DoctorOptions) -> list[Check]:
    """What a container's health check asks: is everything here, and does the run still tick?"""
    checks = [check_python(), check_disk(Path()), *check_platform(options.root)]
    checks += [*check_extras(options.robot), *check_gpu()]
    if options.bundle is not None:
        checks.append(check_bundle_files(options.bundle))
    return [*checks, *check_runs()]


def _all(options: DoctorOptions) -> list[Check]:
    checks = [
        check_python(),
        check_cpu(),
        check_disk(Path()),
        check_clock(options.root),
        *check_platform(options.root),
    ]
    checks += [*check_extras(options.robot), *check_backends()]
    bundle, found = _bundle(options.bundle)
    checks += found
    manifest = bundle.manifest if bundle else None
    if manifest is not None:
        checks.append(check_units(manifest, options.units))
    if options.robot != "so101":
        checks.append(check_renderer(needed=options.robot == "twin"))
    elif options.port is None:
        checks.append(_no_port())
    else:
        checks += arm.check_arm(
            options.port,
            options.calibration,
            manifest,
            options.servo_volts,
            options.cycles,
            options.bus_timeout_s,
            options.bus,
            options.units,
        )
    if options.cameras:
        checks += doctor_cameras.check_cameras(options.cameras, bundle, options.camera_s)
    elif options.robot == "so101" and manifest and manifest.cameras:
        checks.append(_no_cameras(manifest))
    return [*checks, *check_runs()]


def check_python() -> Check:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", OK, f"{version} on {platform.machine()}")
    return Check("python", WARN, f"{version} is not tested", "use Python 3.10 to 3.13")


def check_cpu() -> Check:
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    finding = f"{cores} cores, load {os.getloadavg()[0]:.1f}"
    remedy = "stop other programs before a run: late ticks make the arm jerk"
    return judged("cpu", os.getloadavg()[0] >= cores, finding, remedy)


def check_disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(folder).free / 1e9
    return judged("disk", free_gb <= MIN_FREE_GB, f"{free_gb:.0f} GB free here", "free some space")


def check_clock(root: Path, now_s: float | None = None) -> Check:
    """A computer without a clock battery starts with an old date: certificates fail, and the times
    in logs are wrong.
    """
    now_s = time.time() if now_s is None else now_s
    behind_s = Path(__file__).stat().st_mtime - now_s
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    remedy = "connect to a network, then `sudo timedatectl set-ntp true`"
    if behind_s > MAX_BEHIND_S:
        return Check("clock", FAIL, f"{date}, which is before mtdit was installed", remedy)
    timesync = root / "run/systemd/timesync"
    waiting = timesync.is_dir() and not (timesync / "synchronized").exists()
    return judged("clock", waiting, f"{date}, not synchronised yet" if waiting else date, remedy)


def check_extras(robot: str) -> Iterator[Check]:
    """Which extras are complete. Modules are looked up, not imported: torch alone takes seconds."""
    needed = {"twin": ("runtime", "twin"), "so101": ("runtime",)}.get(robot, ())
    for extra, modules in EXTRAS.items():
        if extra in ("cuda", "tensorrt"):  # `check_backends` does more than look them up
            continue
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        finding = f"missing {', '.join(missing)}" if missing else "installed"
        status = FAIL if missing and extra in needed else OK
        remedy = install(fitting(extra)) if missing else ""
        yield Check(f"extra {extra}", status, finding, remedy)


def _bundle(folder: Path | None) -> tuple[Bundle | None, list[Check]]:
    """The bundle if this computer can run it, and the check of it."""
    if folder is None:
        return None, []
    from mtdit_runtime.engines.choose import choose_engines
    from mtdit_runtime.policy.warm_up import warm_up_s

    try:
        bundle = open_bundle(folder)
        engines = choose_engines(bundle)
        latency_s = warm_up_s(bundle, engines)
    except (UserError, TimeoutError) as error:
        return None, [Check("bundle", FAIL, f"{folder} does not run here", str(error))]
    m = bundle.manifest
    too_slow = latency_s * m.fps > m.n_action_steps / 2
    finding = f"{printable(m.name)}: a chunk takes {latency_s * 1e3:.0f} ms, {engines.reason}"
    remedy = f"too slow for {m.fps} Hz: export with fewer denoising steps (--steps)"
    return bundle, [judged("bundle", too_slow, finding, remedy)]


def check_bundle_files(folder: Path) -> Check:
    """Whether a bundle is complete; checksums are left out, they take seconds."""
    try:
        manifest = open_bundle(folder, check_files=False).manifest
    except UserError as error:
        return Check("bundle", FAIL, f"{folder} cannot run", str(error))
    return Check("bundle", OK, f"{printable(manifest.name)}: all files are there")


def check_runs(now_s: float | None = None) -> Iterator[Check]:
    """Whether the runs of this computer still tick, by their heartbeats."""
    folder = run_folder()
    if os.environ.get(RUN_DIR) and not (folder and os.access(folder, os.W_OK)):
        remedy = f"mount a folder there that you can write, or set {RUN_DIR} to one"
        yield Check("run", WARN, f"{folder} takes no heartbeat of a run", remedy)
        return
    seen = heartbeats(now_s)
    for number, beat in enumerate(seen, 1):
        name = "run" if len(seen) == 1 else f"run {number}"
        what = f"{printable(beat.run.policy)}, {printable(beat.run.task)!r}"
        if beat.is_fresh:
            yield Check(name, OK, f"{what}: ticks, {beat.silent_s:.0f} s ago")
        elif beat.is_alive:
            finding = f"{what}: no tick for {beat.silent_s:.0f} s"
            yield Check(name, FAIL, finding, "hold the arm, then stop it with Ctrl-C")
        else:
            finding = f"{what}: was killed {beat.silent_s:.0f} s ago, the arm may have torque"
            remedy = "hold the arm and unplug its power, or start `mtdit run` again"
            yield Check(name, WARN, finding, remedy)
    if not seen:
        yield Check("run", OK, "none goes on")


def check_units(manifest: Manifest, said: str | None) -> Check:
    """Whether a real arm can run the bundle in a unit that is known."""
    try:
        units = run_units(manifest, said, is_real=True)
    except UserError as error:
        return Check("units", WARN, f"the bundle's is {manifest.units}", str(error))
    return Check("units", OK, f"the policy moves body joints in {units}, the gripper in percent")


def check_renderer(needed: bool) -> Check:
    """Which renderer draws the twin's cameras, and how to get a faster one."""
    if importlib.util.find_spec("mujoco") is None:
        status, remedy = FAIL if needed else OK, install("twin")
        return Check("renderer", status, "the twin is not installed", remedy)
    from mtdit_robots.twin.render import choose_renderer

    choice = choose_renderer()
    status = WARN if choice.fix else OK
    return Check("renderer", status, f"{choice.name}: {choice.reason}", choice.fix or "")


def _no_port() -> Check:
    patterns = ("/dev/serial/by-id/*", "/dev/ttyACM*", "/dev/ttyUSB*")
    ports = sorted(port for pattern in patterns for port in glob.glob(pattern))
    plug_in = "plug in the arm's USB cable, then pass --port"
    return Check("port", FAIL, "no port was given", f"pass --port {ports[0]}" if ports else plug_in)


def _no_cameras(manifest: Manifest) -> Check:
    options = " ".join(
        f"--camera {camera.name}=/dev/video{i}" for i, camera in enumerate(manifest.cameras)
    )
    finding = "no cameras were given, the policy needs them"
    return Check("cameras", WARN, finding, f"pass {options}; see `mtdit find-cameras`")
