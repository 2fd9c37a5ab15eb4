"""Checkpoint to bundle. All of it needs torch but `build`, which needs TensorRT and runs on the
robot computer.
"""
