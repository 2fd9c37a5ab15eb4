"""The SO-101 arm."""
