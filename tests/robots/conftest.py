"""The chain of virtual servos, for the tests of this folder."""

from servo_chain import calibration, chain, factory_chain, leader

__all__ = ["calibration", "chain", "factory_chain", "leader"]
