"""Checkpoints in LeRobot's layout."""
