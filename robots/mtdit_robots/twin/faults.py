"""What can go wrong between a servo and its client, switched on and off while the virtual bus runs.

Knows replies as bytes. Refuses to know why a wire misbehaves, and what a servo does to itself: a
brown-out is `ServoRegisters.power_cycle`, a fault of its own `ServoRegisters.error`, an unplugged
servo one taken from the chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_ID = 2  # where a frame has its servo's id


@dataclass
class Faults:
    """No fault at first. Fields may be changed at any time."""

    silent: set[int] = field(
        default_factory=set
    )  # servos that hear and act, but whose replies are lost
    corrupt: Counter[int] = field(
        default_factory=Counter
    )  # servo -> how many of its next replies lose a bit
    noise: bytes = b""  # bytes before every reply
    reverse: bool = False  # the last servo asked replies first
    repeat: bool = False  # every reply arrives twice
    late_s: float = 0.0  # all replies come this much later

    def distort(self, replies: Iterable[bytes]) -> bytes:
        """What arrives of these replies."""
        heard = [self._received(reply) for reply in replies if reply[_ID] not in self.silent]
        if self.reverse:
            heard.reverse()
        return b"".join((self.noise + reply) * (1 + self.repeat) for reply in heard)

    def _received(self, reply: bytes) -> bytes:
        if self.corrupt[reply[_ID]] <= 0:
            return reply
        self.corrupt[reply[_ID]] -= 1
        return reply[:-1] + bytes((reply[-1] ^ 0x10,))
