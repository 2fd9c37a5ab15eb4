"""SO-101 robots: servo protocol, calibrated units, cameras, and the digital twin.

This package imports none of the other mtdit packages.
"""
