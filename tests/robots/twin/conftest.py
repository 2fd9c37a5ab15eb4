"""One energised world per module, and one choice of renderer for every process the tests start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mtdit_robots.twin.render import OVERRIDE, choose_renderer
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import World


@pytest.fixture(scope="session", autouse=True)
def _one_renderer() -> Iterator[None]:
    """Children inherit the choice instead of each trying GL again."""
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = choose_renderer().name
    yield
    if before is None:
        del os.environ[OVERRIDE]
    else:
        os.environ[OVERRIDE] = before


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Torque on, gains as the driver sets them. Reset it first: tests share it."""
    made = World(find_task("open the drawer"))
    made.energise()
    yield made
    made.close()
