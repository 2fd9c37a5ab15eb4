"""A simulated SO-101 and its table, behind a virtual servo bus: the driver's own bytes cross a
pseudo-terminal.
"""
