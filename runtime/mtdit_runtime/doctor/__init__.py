"""Checks of a computer, an arm and its cameras."""
