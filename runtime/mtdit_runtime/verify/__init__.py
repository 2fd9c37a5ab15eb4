"""Checks a bundle's graphs against recorded outputs; builds TensorRT engines."""
