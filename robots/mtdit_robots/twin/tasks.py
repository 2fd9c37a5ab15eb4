"""The twin's tasks: instruction, start of the drawer, success criterion, and the expert's plan.

All tasks share one scene and one distribution of layouts. Left and right are the robot's (left is
+y).
"""

from __future__ import annotations

import difflib

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.twin import plans
from mtdit_robots.twin.objects import CUBE_HALF_M
from mtdit_robots.twin.world import Task, World

OPEN_M, CLOSED_M = 0.06, 0.01  # drawer
PUSHED_M = 0.05
LYING_TOLERANCE_M = 0.008  # of the cube's height when it lies flat
IN_BOWL_M, IN_BOWL_HEIGHT_M = 0.035, 0.040  # from the bowl's centre to the cube's

SHUT = (0.0, 0.0)
AJAR = (0.04, 0.07)


def _opened(world: World) -> bool:
    return world.drawer_m() > OPEN_M


def _closed(world: World) -> bool:
    return world.drawer_m() < CLOSED_M


def _pushed(world: World, side: int) -> bool:
    """Whether the cube lies on the table, more than PUSHED_M to that side (+1 left, -1 right) of
    its start.
    """
    cube = world.position("cube")
    on_table = abs(cube[2] - CUBE_HALF_M) < LYING_TOLERANCE_M
    return bool(on_table and side * (cube[1] - world.start["cube"][1]) > PUSHED_M)


def _in_bowl(world: World) -> bool:
    off = world.position("cube") - world.position("bowl")
    return bool(np.hypot(off[0], off[1]) < IN_BOWL_M and off[2] < IN_BOWL_HEIGHT_M)


_ALL = (
    Task("open the drawer", SHUT, _opened, plans.open_drawer),
    Task("close the drawer", AJAR, _closed, plans.close_drawer),
    Task(
        "push the red cube to the left",
        SHUT,
        lambda w: _pushed(w, +1),
        lambda w: plans.push_cube(w, +1),
    ),
    Task(
        "push the red cube to the right",
        SHUT,
        lambda w: _pushed(w, -1),
        lambda w: plans.push_cube(w, -1),
    ),
    Task("put the red cube in the bowl", SHUT, _in_bowl, plans.put_cube_in_bowl),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(text: str) -> Task:
    """The task of an instruction. UserError for an unknown one; it suggests the nearest."""
    if text in TASKS:
        return TASKS[text]
    near = difflib.get_close_matches(text, TASKS, n=1, cutoff=0.4)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else "use one of: " + ", ".join(repr(name) for name in TASKS)
    )
    raise UserError(f"the twin has no task {text!r}: {hint}")
