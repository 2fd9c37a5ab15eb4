"""The digital twin: a simulated SO-101 at a table, which the real driver reaches over a virtual
servo bus (a pseudo-terminal).
"""
