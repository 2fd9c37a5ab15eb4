"""Faults of the wire between servos and client, which can be changed while the virtual bus runs.

Faults of a servo are elsewhere: for a brown-out call `ServoRegisters.power_cycle`, for error bits
set `ServoRegisters.error`, for an unplugged servo remove it from the bus's `servos`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_ID = 2  # where a frame has its servo's id


@dataclass
class Faults:
    """The present faults, none at first. Fields may be changed at any time.

    silent: servos that act on requests but whose replies are lost. corrupt: servo -> how many of
    its next replies have one flipped bit. noise: bytes before every reply. reverse: replies come in
    reverse order. repeat: every reply arrives twice. late_s: delay of all replies.
    """

    silent: set[int] = field(default_factory=set)
    corrupt: Counter[int] = field(default_factory=Counter)
    noise: bytes = b""
    reverse: bool = False
    repeat: bool = False
    late_s: float = 0.0

    def distort(self, replies: Iterable[bytes]) -> bytes:
        """The bytes that arrive of these replies."""
        heard = [self._received(reply) for reply in replies if reply[_ID] not in self.silent]
        if self.reverse:
            heard.reverse()
        return b"".join((self.noise + reply) * (1 + self.repeat) for reply in heard)

    def _received(self, reply: bytes) -> bytes:
        if self.corrupt[reply[_ID]] <= 0:
            return reply
        self.corrupt[reply[_ID]] -= 1
        return reply[:-1] + bytes((reply[-1] ^ 0x10,))
