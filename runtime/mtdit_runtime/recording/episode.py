"""One episode while it is being recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.recording.video_encoder import Encoding


@dataclass
class Episode:
    """An episode that is being recorded: `add` frames, then `discard` it or give it to
    `DatasetWriter.save_episode`.
    """

    task: str
    encodings: Mapping[str, Encoding]  # camera -> the encoder of its frames
    states: list[Positions] = field(default_factory=list)  # (J,) per frame
    actions: list[Positions] = field(default_factory=list)  # (J,) per frame

    def add(self, state: Positions, action: Positions, frames: Mapping[str, Frame]) -> None:
        """Add one tick: measured positions (J,), the command (J,), camera -> (H, W, 3) uint8 RGB.

        Frames are encoded in another thread; this does not wait for it.
        """
        for camera, encoding in self.encodings.items():
            encoding.add(frames[camera])
        self.states.append(np.array(state, np.float32))
        self.actions.append(np.array(action, np.float32))

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def repeated(self) -> dict[str, int]:
        """Camera -> frames replaced by the frame before, because the encoder was too slow."""
        return {name: e.repeated for name, e in self.encodings.items() if e.repeated}

    def discard(self) -> None:
        """Stop the encoders; nothing of the episode is saved."""
        for encoding in self.encodings.values():
            encoding.abandon()
