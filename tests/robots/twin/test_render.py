"""Choosing a renderer, and drawing with each one that this machine has. Each in a process of its
own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mtdit_robots.extras import install
from mtdit_robots.twin.render import NAMES, OVERRIDE, choose_renderer

DRAW = """
import numpy as np
from mtdit_robots.twin.render import choose_renderer
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import World
world = World(find_task("open the drawer"))
top, wrist = (world.render(camera, 48, 64).astype(int) for camera in ("top", "wrist"))
assert top.shape == (48, 64, 3)
red = np.argwhere(top[..., 0] - top[..., 1] > 100)
print(choose_renderer().name, len(red), *red.mean(axis=0).round(1), round(wrist.mean()))
world.close()
"""

WITHOUT_MUJOCO = """
import sys
from importlib.machinery import PathFinder
class Blind(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "mujoco" else super().find_spec(name, path, target)
sys.meta_path = [Blind if finder is PathFinder else finder for finder in sys.meta_path]
from mtdit_robots.errors import UserError
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import World
try:
    World(find_task("open the drawer"))
except UserError as error:
    print(error)
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if name not in (OVERRIDE, "MUJOCO_GL")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def drawn(renderer: str) -> tuple[str, float, float, float, float]:
    done = run(DRAW, **{OVERRIDE: renderer})
    assert done.returncode == 0, done.stderr
    name, *numbers = done.stdout.split()
    count, row, column, wrist = map(float, numbers)
    return name, count, row, column, wrist


def test_rays_draw_without_any_gl() -> None:
    name, count, *_ = drawn("ray")
    assert name == "ray"
    assert count > 3


def test_every_renderer_shows_the_same_scene() -> None:
    """The cube is where the rays see it, and the wrist picture about as bright, with whatever GL is
    here.
    """
    best = choose_renderer().name
    ray, other = drawn("ray"), drawn(best)
    assert other[0] == best
    assert other[2:4] == pytest.approx(ray[2:4], abs=1.0)
    assert other[4] == pytest.approx(ray[4], abs=40)


def test_an_unknown_override_is_refused() -> None:
    done = run(
        "from mtdit_robots.twin.render import choose_renderer; choose_renderer()",
        **{OVERRIDE: "vulkan"},
    )
    assert done.returncode != 0
    assert "vulkan is not a renderer: use one of egl, osmesa, ray" in done.stderr


def test_a_gl_that_cannot_draw_leads_to_rays_with_the_fix() -> None:
    """No GL library can be found: the search still ends, with a reason and the line that would mend
    it.
    """
    code = (
        "from mtdit_robots.twin.render import choose_renderer; "
        "c = choose_renderer(); print(c.name, c.fix, c.reason)"
    )
    done = run(
        code,
        EGL_PLATFORM="none",
        __EGL_VENDOR_LIBRARY_FILENAMES="/nonexistent",
        PYOPENGL_PLATFORM="",
    )
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[0]
    assert name in NAMES
    if name == "ray":
        assert "apt-get install" in done.stdout


def test_missing_mujoco_names_the_extra() -> None:
    done = run(WITHOUT_MUJOCO)
    said = f"the twin needs MuJoCo, which is not installed: {install('twin')}"
    assert done.stdout.strip() == said, done.stderr
