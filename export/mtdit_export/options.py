"""The options of an export. This module imports neither torch nor onnx, because the CLI reads it at
start-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.manifest import PRECISIONS

FP32, FP16, INT8 = PRECISIONS
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint becomes a bundle. UserError for a precision that does not exist; whether
    sampler, steps and dataset fit is checked against the policy by `export`.
    """

    # fp16: weights and matrix products; int8: vision and text encoders, calibrated on `dataset`
    precision: Precision = "fp32"
    steps: int = 10  # sampler steps per chunk
    # ddim or ddpm for diffusion, euler or rk4 for flow matching; None: the policy's default
    sampler: str | None = None
    # Folder or Hub repo id. The bundle is verified on its frames, else on synthetic ones; a
    # checkpoint of LeRobot lacks joints, rate and tasks, which are then read from it.
    dataset: str | Path | None = None
    # name on the robot -> name in the policy; None: as the checkpoint's preprocessor has it
    rename_map: Mapping[str, str] | None = None
    rtc: bool = False  # also export the guided denoiser of real-time chunking
    # Unit of the policy's body joints, "degrees" or "normalized"; None: as in training, else judged
    units: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
