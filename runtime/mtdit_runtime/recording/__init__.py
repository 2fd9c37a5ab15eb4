"""LeRobot datasets, run logs and films."""
