"""LeRobot's names of the features that every dataset and policy has."""

from __future__ import annotations

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
