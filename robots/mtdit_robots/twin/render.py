"""Find a renderer that works on this computer and draw with it: EGL (GPU or Mesa), OSMesa, or ray
casting on the CPU.

MuJoCo chooses its GL library when it is imported, and its default fails late and with an unclear
error when there is no display. So no module of the twin imports mujoco at its top; all call
`load_mujoco()`, which chooses the renderer first. An incomplete GL installation can abort the
process, so each candidate is tried in its own process.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing

OVERRIDE = "MTDIT_RENDERER"
NAMES = ("egl", "osmesa", "ray")
PROBE_TIMEOUT_S = 60
APT_FIX = (
    "sudo apt-get install --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
)

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the image is empty"
    from OpenGL import GL
    print("GL:", GL.glGetString(GL.GL_RENDERER).decode())
"""


@dataclass(frozen=True)
class RendererChoice:
    """The renderer in use, the reason, and the command that installs a faster one (None if there is
    nothing to fix).
    """

    name: str  # egl | osmesa | ray
    reason: str
    fix: str | None


class Renderer(Protocol):
    """Draws images of one model."""

    def render(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """The state `data` seen by `camera`, as (height, width, 3) uint8 RGB."""
        ...

    def close(self) -> None: ...


@lru_cache(maxsize=1)
def choose_renderer() -> RendererChoice:
    """The best renderer that draws on this computer. MTDIT_RENDERER=egl|osmesa|ray skips the
    search.

    UserError for another value of MTDIT_RENDERER, and when mujoco is not installed.
    """
    _require_mujoco()
    wanted = os.environ.get(OVERRIDE)
    if wanted:
        if wanted not in NAMES:
            raise UserError(f"{OVERRIDE}={wanted} is not a renderer: use one of {', '.join(NAMES)}")
        return RendererChoice(wanted, f"set by {OVERRIDE}", None)
    failures = []
    for name in ("egl", "osmesa"):
        works, detail = _probe(name)
        if works:
            return RendererChoice(name, detail, None)
        failures.append(f"{name}: {detail}")
    return RendererChoice(
        "ray", f"GL does not work here ({'; '.join(failures)}): ray casting on the CPU", APT_FIX
    )


def load_mujoco() -> Any:
    """Import mujoco with the chosen renderer's GL library. UserError if it is not installed."""
    if "mujoco" not in sys.modules:
        choice = choose_renderer()
        os.environ["MUJOCO_GL"] = "disable" if choice.name == "ray" else choice.name
        # More threads do not help at these image sizes and take CPU time from the policy
        os.environ.setdefault("LP_NUM_THREADS", "1")
    return importlib.import_module("mujoco")


def make_renderer(model: Any) -> Renderer:
    """A renderer of the chosen kind for the model. Use it from one thread, and close it."""
    if choose_renderer().name == "ray":
        return RayRenderer(model)
    return GlRenderer(model)


class GlRenderer:
    """MuJoCo's OpenGL renderer, one context per image size."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._contexts: dict[tuple[int, int], Any] = {}

    def render(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        context = self._contexts.get((height, width))
        if context is None:
            context = self._add_context(height, width)
        context.update_scene(data, camera)
        picture: NDArray[np.uint8] = context.render()
        return picture

    def close(self) -> None:
        _close_all(self._contexts)

    def _add_context(self, height: int, width: int) -> Any:
        context = load_mujoco().Renderer(self._model, height, width)
        if not self._contexts:  # contexts still open when MuJoCo ends GL at exit print errors
            atexit.register(_close_all, self._contexts)
        self._contexts[height, width] = context
        return context


def _close_all(contexts: dict[tuple[int, int], Any]) -> None:
    for context in contexts.values():
        context.close()
    contexts.clear()


class RayRenderer:
    """One ray per pixel with Lambert shading from one lamp, without GL. 5 to 10 times slower than
    software GL.
    """

    LAMP_M = np.array([0.05, -0.45, 1.2])
    SKY = (0.75, 0.80, 0.85)
    AMBIENT, LAMBERT = 0.45, 0.60
    RANGE_M = 10.0

    def __init__(self, model: Any) -> None:
        self._mujoco = load_mujoco()
        self._model = model
        colours = model.geom_rgba[:, :3].copy()
        for geom in np.flatnonzero(model.geom_matid >= 0):
            colours[geom] = _mean_colour(model, int(model.geom_matid[geom]))
        # (G + 1, 3); a ray that hits nothing has geom id -1, which indexes the sky
        self._colours = np.vstack([colours, self.SKY])
        self._groups = np.ones(6, np.uint8)
        self._rays: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def render(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        number = self._model.camera(camera).id
        eye = data.cam_xpos[number].copy()
        axes = data.cam_xmat[number].reshape(3, 3)
        # (N, 3), world frame
        rays = np.ascontiguousarray(self._rays_of(number, height, width) @ axes.T)
        geoms, distances, normals = self._cast(data, eye, rays)
        to_lamp = self.LAMP_M - (eye + rays * distances[:, None])
        to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
        light = self.AMBIENT + self.LAMBERT * np.clip(np.einsum("ij,ij->i", normals, to_lamp), 0, 1)
        light[geoms < 0] = 1
        shaded = np.clip(self._colours[geoms] * light[:, None], 0, 1) * 255
        return shaded.astype(np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        self._rays.clear()

    def _cast(
        self, data: Any, eye: NDArray[np.float64], rays: NDArray[np.float64]
    ) -> tuple[NDArray[Any], ...]:
        count = len(rays)
        geoms, distances, normals = np.empty(count, np.int32), np.empty(count), np.empty((count, 3))
        self._mujoco.mj_multiRay(
            self._model, data, eye, rays.reshape(-1), self._groups, 1, -1,
            geoms, distances, normals.reshape(-1), count, self.RANGE_M,
        )  # fmt: skip
        return geoms, distances, normals

    def _rays_of(self, camera: int, height: int, width: int) -> NDArray[np.float64]:
        """Unit rays (height * width, 3) in the camera's frame, row by row."""
        key = (camera, height, width)
        if key not in self._rays:
            reach = math.tan(math.radians(self._model.cam_fovy[camera]) / 2)
            y = reach * (1 - 2 * (np.arange(height) + 0.5) / height)
            x = reach * width / height * (2 * (np.arange(width) + 0.5) / width - 1)
            grid = np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], axis=-1).reshape(
                -1, 3
            )
            self._rays[key] = grid / np.linalg.norm(grid, axis=1, keepdims=True)
        return self._rays[key]


def _mean_colour(model: Any, material: int) -> NDArray[np.float64]:
    """The mean RGB of a material's texture, or its own colour when it has none."""
    textures = [t for t in np.ravel(model.mat_texid[material]) if t >= 0]
    if not textures:
        return np.array(model.mat_rgba[material, :3])
    texture = textures[0]
    start, count = model.tex_adr[texture], model.tex_height[texture] * model.tex_width[texture]
    channels = int(model.tex_nchannel[texture])
    texels = model.tex_data[start : start + count * channels].reshape(-1, channels)
    mean: NDArray[np.float64] = texels[:, :3].mean(axis=0) / 255
    return mean


def _probe(name: str) -> tuple[bool, str]:
    """Draw one small image in a new process. Returns whether it worked, and GL's name for itself or
    the error.
    """
    env = {**os.environ, "MUJOCO_GL": name, "LP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=env,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"no image within {PROBE_TIMEOUT_S} s"
    for line in done.stdout.splitlines():
        if line.startswith("GL:"):
            return True, line[3:].strip()
    errors = done.stderr.strip().splitlines()
    if not errors:
        return False, f"the process ended with code {done.returncode}"
    return False, errors[-1].partition(". ")[0][:120]


def _require_mujoco() -> None:
    if importlib.util.find_spec("mujoco") is None:
        raise missing("mujoco", "the twin needs MuJoCo")
