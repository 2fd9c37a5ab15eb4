"""Vectors by the names of their joints: where the joints of one vector are in another one.

States, actions, statistics and limits each have their own names, in their own order. Nothing may
assume that two of them agree: whoever moves numbers from one to another asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.text import printable

MOST = 300  # characters of a list of names in a message


@dataclass(frozen=True)
class Named:
    """The joint names of one vector, in its order. whose: what a message calls their owner."""

    whose: str
    joints: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.whose} has joints {listed(self.joints)}"


def places(wanted: Named, given: Named, fix: str) -> NDArray[np.intp]:
    """Where each joint of `wanted` is in `given`: `vector[..., places]` brings a vector of `given`
    into the order of `wanted`. `given` may have more joints.

    UserError with both lists, ending in `fix`, when a joint is missing or a name is repeated.
    """
    for one in (wanted, given):
        twice = repeated(one.joints)
        if twice:
            raise UserError(f"{wanted}; {given}: {one.whose} has {twice!r} twice: {fix}")
    missing = [joint for joint in wanted.joints if joint not in given.joints]
    if missing:
        raise UserError(f"{wanted}; {given}: {given.whose} has no {missing[0]!r}: {fix}")
    return np.array([given.joints.index(joint) for joint in wanted.joints], np.intp)


def permutation(wanted: Named, given: Named, fix: str) -> NDArray[np.intp]:
    """Like `places`, for vectors that must have the same joints. UserError with both lists."""
    found = places(wanted, given, fix)
    places(given, wanted, fix)
    return found


def repeated(joints: Sequence[str]) -> str | None:
    """The first name that comes twice."""
    return next((name for i, name in enumerate(joints) if name in joints[:i]), None)


def listed(joints: Sequence[str]) -> str:
    """The names, for a message."""
    return printable(", ".join(joints) or "none", MOST)


def difference(state: Sequence[str], action: Sequence[str]) -> str | None:
    """What to tell a user about a state whose joints are not the action's, in one line; None when
    they are the same in the same order.
    """
    if tuple(state) == tuple(action):
        return None
    same = sorted(state) == sorted(action)
    how = "in different orders" if same else "that are not the same"
    return (
        f"state and action have joints {how} (state: {listed(state)}; action: {listed(action)}): "
        "each keeps its own order, and every value is found by its joint's name"
    )
