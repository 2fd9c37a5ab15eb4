"""From a LeRobot dataset to a moving SO-101 arm: train, export and run a Multitask DiT policy.

    import mtdit

    policy = mtdit.load("policy.mtdit")           # a bundle; or a run, a checkpoint, a Hub repo id
    policy.reset("open the drawer", seed=0)
    policy.observe(positions, {"top": frame})     # (J,) degrees, (H, W, 3) uint8 RGB
    chunk = policy.chunk()                        # (horizon, J) degrees

docs/python.md shows every name. Each is imported when it is first used: `import mtdit` itself takes
a few milliseconds, and torch is imported by what needs it (training, export, checkpoints).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BuildOptions",
    "Bundle",
    "Camera",
    "CameraOptions",
    "Checkpoint",
    "DatasetLayout",
    "DatasetWriter",
    "DeployOptions",
    "Deployment",
    "DriveOptions",
    "EvalOptions",
    "EvalReport",
    "ExportError",
    "ExportOptions",
    "ExportReport",
    "Leader",
    "Observation",
    "Policy",
    "RecordOptions",
    "RecordedEpisode",
    "RepairReport",
    "ReplayReport",
    "Robot",
    "RunOptions",
    "RunReport",
    "SafetyConfig",
    "SessionStats",
    "SimulateReport",
    "So101Arm",
    "So101Leader",
    "TrainConfig",
    "Twin",
    "UserError",
    "Verification",
    "bench",
    "build",
    "deploy",
    "evaluate",
    "export",
    "load",
    "load_calibration",
    "open_bundle",
    "open_camera",
    "open_checkpoint",
    "read_episode",
    "record",
    "repair",
    "replay",
    "run",
    "simulate",
    "teleoperate",
    "train",
    "verify",
    "verify_checkpoint",
]

if TYPE_CHECKING:
    from mtdit.checkpoint.read import Checkpoint, open_checkpoint
    from mtdit.policy_loader import load
    from mtdit.training.config import TrainConfig
    from mtdit.training.run import train
    from mtdit_export.export import ExportReport, export
    from mtdit_export.options import ExportOptions
    from mtdit_export.verify_checkpoint import verify_checkpoint
    from mtdit_robots.cameras.camera import Camera
    from mtdit_robots.cameras.open import open_camera
    from mtdit_robots.cameras.options import CameraOptions
    from mtdit_robots.errors import ExportError, UserError
    from mtdit_robots.robot import Observation, Robot
    from mtdit_robots.so101.arm import So101Arm
    from mtdit_robots.so101.calibration import load as load_calibration
    from mtdit_robots.so101.leader import So101Leader
    from mtdit_robots.twin.client import Twin
    from mtdit_runtime.bench import bench
    from mtdit_runtime.bundle.bundle import Bundle, open_bundle
    from mtdit_runtime.control.report import RunReport
    from mtdit_runtime.control.safety import SafetyConfig
    from mtdit_runtime.deploy.deploy import Deployment, DeployOptions, deploy
    from mtdit_runtime.evaluate import EvalOptions, EvalReport, evaluate
    from mtdit_runtime.policy.policy import Policy
    from mtdit_runtime.record import RecordOptions, record
    from mtdit_runtime.recording.dataset_layout import DatasetLayout
    from mtdit_runtime.recording.dataset_reader import RecordedEpisode, read_episode
    from mtdit_runtime.recording.dataset_repair import RepairReport, repair
    from mtdit_runtime.recording.dataset_writer import DatasetWriter
    from mtdit_runtime.recording.session import SessionStats
    from mtdit_runtime.replay import ReplayReport, replay
    from mtdit_runtime.run import RunOptions, run
    from mtdit_runtime.simulate import SimulateReport, simulate
    from mtdit_runtime.teleoperate import DriveOptions, Leader, teleoperate
    from mtdit_runtime.verify.build import BuildOptions, build
    from mtdit_runtime.verify.gates import Verification
    from mtdit_runtime.verify.verify import verify

# name -> its module, or "module:name there". The block above says the same to type checkers.
_HOMES = {
    # trained policies
    "load": "mtdit.policy_loader",
    "Policy": "mtdit_runtime.policy.policy",
    "open_bundle": "mtdit_runtime.bundle.bundle",
    "Bundle": "mtdit_runtime.bundle.bundle",
    "open_checkpoint": "mtdit.checkpoint.read",
    "Checkpoint": "mtdit.checkpoint.read",
    # running a policy
    "run": "mtdit_runtime.run",
    "RunOptions": "mtdit_runtime.run",
    "SafetyConfig": "mtdit_runtime.control.safety",
    "RunReport": "mtdit_runtime.control.report",
    "evaluate": "mtdit_runtime.evaluate",
    "EvalOptions": "mtdit_runtime.evaluate",
    "EvalReport": "mtdit_runtime.evaluate",
    "bench": "mtdit_runtime.bench",
    # robots
    "Twin": "mtdit_robots.twin.client",
    "So101Arm": "mtdit_robots.so101.arm",
    "So101Leader": "mtdit_robots.so101.leader",
    "Robot": "mtdit_robots.robot",
    "Leader": "mtdit_runtime.teleoperate",
    "Observation": "mtdit_robots.robot",
    "load_calibration": "mtdit_robots.so101.calibration:load",
    "open_camera": "mtdit_robots.cameras.open",
    "CameraOptions": "mtdit_robots.cameras.options",
    "Camera": "mtdit_robots.cameras.camera",
    # demonstrations
    "teleoperate": "mtdit_runtime.teleoperate",
    "DriveOptions": "mtdit_runtime.teleoperate",
    "record": "mtdit_runtime.record",
    "RecordOptions": "mtdit_runtime.record",
    "SessionStats": "mtdit_runtime.recording.session",
    "simulate": "mtdit_runtime.simulate",
    "SimulateReport": "mtdit_runtime.simulate",
    "read_episode": "mtdit_runtime.recording.dataset_reader",
    "RecordedEpisode": "mtdit_runtime.recording.dataset_reader",
    "replay": "mtdit_runtime.replay",
    "ReplayReport": "mtdit_runtime.replay",
    "repair": "mtdit_runtime.recording.dataset_repair",
    "RepairReport": "mtdit_runtime.recording.dataset_repair",
    "DatasetWriter": "mtdit_runtime.recording.dataset_writer",
    "DatasetLayout": "mtdit_runtime.recording.dataset_layout:DatasetLayout",
    # training and export
    "train": "mtdit.training.run",
    "TrainConfig": "mtdit.training.config",
    "export": "mtdit_export.export",
    "ExportOptions": "mtdit_export.options",
    "ExportReport": "mtdit_export.export",
    "verify": "mtdit_runtime.verify.verify",
    "verify_checkpoint": "mtdit_export.verify_checkpoint",
    "Verification": "mtdit_runtime.verify.gates",
    "build": "mtdit_runtime.verify.build",
    "BuildOptions": "mtdit_runtime.verify.build",
    # robot computers
    "deploy": "mtdit_runtime.deploy.deploy",
    "DeployOptions": "mtdit_runtime.deploy.deploy",
    "Deployment": "mtdit_runtime.deploy.deploy",
    # errors
    "UserError": "mtdit_robots.errors",
    "ExportError": "mtdit_robots.errors",
}

if not TYPE_CHECKING:  # for mypy every name would exist

    def __getattr__(name: str) -> object:
        """Import an exported name when it is first used (PEP 562)."""
        from importlib import import_module

        home, _, attribute = _HOMES.get(name, "").partition(":")
        if not home:
            raise AttributeError(_unknown(name), name=name)  # without name, Python adds a hint too
        try:
            value = getattr(import_module(home), attribute or name)
        except ModuleNotFoundError as error:
            from mtdit_robots.extras import extra_of, missing

            if extra_of(error.name or "") is None:
                raise
            extra = "export" if home.startswith("mtdit_export.") else ""  # it includes "train"
            raise missing(error.name or "", f"mtdit.{name} needs {error.name}", extra) from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, __all__, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ": `dir(mtdit)` lists its names"
    return f"mtdit has no attribute {name!r}{hint}"
