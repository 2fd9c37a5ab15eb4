"""SO-101 robots: servo bytes, calibrated units, cameras, and the digital twin. Imports nothing else
of ours.
"""
