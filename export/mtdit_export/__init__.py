"""Exports a checkpoint as a bundle. Everything here needs torch except `build`, which needs
TensorRT and runs on the robot computer.
"""
