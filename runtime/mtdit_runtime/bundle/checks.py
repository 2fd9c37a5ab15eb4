"""Checks of an opened bundle: its files, its numbers, and the tensors of its graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mtdit_robots.errors import UserError
from mtdit_robots.units import PERCENT
from mtdit_runtime.bundle.manifest import (
    ACTIONS,
    EARLIER_FEATURES,
    EARLIER_STATE,
    FEATURES,
    HISTORY_MODULATION,
    MANIFEST,
    MAX_COST,
    NOISE,
    PRECISIONS,
    PREFIX,
    PREFIX_MASK,
    PREFIX_WEIGHTS,
    SAMPLERS,
    STATE,
    STATS,
    STEP_NOISE,
    TASKS,
    TEXT_FEATURE,
    TOKEN_IDS,
    UNITS,
    Joint,
    Manifest,
    Tensor,
    frame_input,
)
from mtdit_runtime.files import MAX_DIM, sha256
from mtdit_runtime.joint_order import listed


def check_file(folder: Path, name: str, digest: str, hashed: bool) -> None:
    if not _is_inside(folder, name):
        raise UserError(
            f"{folder}: manifest names {name!r}, which lies outside the bundle: "
            "do not use this bundle"
        )
    if not (folder / name).is_file():
        raise UserError(
            f"{folder}: {name} is missing: copy the whole bundle again or re-run `mtdit export`"
        )
    if hashed and sha256(folder / name) != digest:
        raise UserError(
            f"{folder}: {name} does not match its checksum: "
            "copy the bundle again or re-run `mtdit export`"
        )


def _is_inside(folder: Path, name: str) -> bool:
    pure = PurePosixPath(name)
    if not pure.name or pure.is_absolute() or ".." in pure.parts or len(name) > 200:
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a symlink to itself, a null byte
        return False


def check_consistency(manifest: Manifest, folder: Path) -> None:
    """Check what the types cannot express, e.g. that files have checksums, that sizes are positive,
    that the executed actions lie inside the horizon.
    """
    problems = [*_file_problems(manifest), *_fact_problems(manifest)] or _wrong_tensors(manifest)
    if problems:
        raise UserError(f"{folder}/{MANIFEST}: {problems[0]}: re-run `mtdit export`")


def _file_problems(m: Manifest) -> Iterator[str]:
    yield from (
        f"graph file {g.file} has no checksum" for g in m.graphs.values() if g.file not in m.files
    )
    yield from (f"{name} has no checksum" for name in (STATS, TASKS) if name not in m.files)
    yield from (
        f"graph {name!r} is missing"
        for name in ("text", "history", "denoiser")
        if name not in m.graphs
    )
    graphs = m.graphs.items()
    costs = [(name, cost) for name, graph in graphs for cost in (graph.flops, graph.weight_bytes)]
    yield from (
        f"graph {name!r} has a cost (flops or weight_bytes) out of range"
        for name, cost in costs
        if not 0 <= cost <= MAX_COST
    )
    if m.cameras and "vision" not in m.graphs:
        yield "graph 'vision' is missing"


def _fact_problems(m: Manifest) -> Iterator[str]:
    if m.sampler.kind not in SAMPLERS:
        yield f"sampler {m.sampler.kind!r} is unknown"
    if not 1 <= m.sampler.steps <= MAX_DIM:
        yield f"sampler takes {m.sampler.steps} steps, not 1 to {MAX_DIM}"
    if m.precision not in PRECISIONS:
        yield f"precision {m.precision!r} is unknown"
    sizes = {n: getattr(m, n) for n in ("n_obs_steps", "horizon", "n_action_steps", "fps")}
    yield from (
        f"{n} is {v}, not 1 to {MAX_DIM}" for n, v in sizes.items() if not 1 <= v <= MAX_DIM
    )
    yield from (
        f"joint {j.name!r} has an invalid unit, range or speed"
        for j in m.joints
        if not _is_valid_joint(j)
    )
    action, cameras = [j.name for j in m.joints], [c.name for c in m.cameras]
    named = (("joints", action), ("joints of the state", m.state_joints), ("cameras", cameras))
    for what, names in named:
        yield from (
            f"two {what} are called {name!r}"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        )
    if not m.joints or not m.state_joints:
        yield f"it has no joints (state: {listed(m.state_joints)}; action: {listed(action)})"
    if len({j.unit for j in m.joints} - {PERCENT}) > 1:
        yield "its joints are in different units"
    if m.n_obs_steps - 1 + m.n_action_steps > m.horizon:
        yield "n_obs_steps - 1 + n_action_steps exceeds horizon"


def _wrong_tensors(m: Manifest) -> list[str]:
    """Problems of graphs whose inputs and outputs contradict the rest of the manifest. Only the
    widths of features are free.
    """
    unknown = sorted(set(m.graphs) - {"vision", "text", "history", "denoiser", "guided"})
    found = [f"graph {name!r} is unknown" for name in unknown]
    for name, (inputs, outputs) in _wanted_tensors(m).items():
        found += _differing(f"graph {name!r}", "input", m.graphs[name].inputs, inputs)
        found += _differing(f"graph {name!r}", "output", m.graphs[name].outputs, outputs)
    return found


def _wanted_tensors(m: Manifest) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Graph name -> the inputs and the outputs that it should have."""
    joints, state = len(m.joints), len(m.state_joints)
    actions = (1, m.horizon, joints)
    text = Tensor(TEXT_FEATURE, (1, feature_width(m.graphs["text"].outputs)), "float32")
    ids = Tensor(TOKEN_IDS, (1, feature_width(m.graphs["text"].inputs)), "int64")
    known = Tensor(HISTORY_MODULATION, (1, feature_width(m.graphs["history"].outputs)), "float32")
    wanted, given = {"text": ([ids], [text])}, [known, Tensor(STATE, (1, state), "float32")]
    given += [Tensor(name, actions, "float32") for name in (NOISE, PREFIX)]
    if m.sampler.draws > 1:
        given.append(Tensor(STEP_NOISE, (1, m.sampler.draws - 1, *actions[1:]), "float32"))
    earlier = [(EARLIER_STATE, state)]
    if "vision" in m.graphs:
        width = feature_width(m.graphs["vision"].outputs)
        frames = [Tensor(frame_input(c.name), (c.height, c.width, 3), "uint8") for c in m.cameras]
        wanted["vision"] = (frames, [Tensor(FEATURES, (1, width), "float32")])
        given.append(Tensor(FEATURES, (1, width), "float32"))
        earlier.append((EARLIER_FEATURES, width))
    before = [
        Tensor(name, (1, m.n_obs_steps - 1, width), "float32")
        for name, width in earlier
        if m.n_obs_steps > 1
    ]
    wanted["history"] = ([text, *before], [known])
    for name, held in (("denoiser", PREFIX_MASK), ("guided", PREFIX_WEIGHTS)):
        if name in m.graphs:
            rows = Tensor(held, (1, m.horizon, 1), "float32")
            wanted[name] = ([*given, rows], [Tensor(ACTIONS, actions, "float32")])
    return wanted


def feature_width(tensors: tuple[Tensor, ...]) -> int:
    """Last dimension of the first tensor: a width that nothing else in the manifest states."""
    width = tensors[0].shape[-1] if tensors and tensors[0].shape else 1
    return width if 1 <= width <= MAX_DIM else 1


def _differing(where: str, what: str, got: tuple[Tensor, ...], wanted: list[Tensor]) -> list[str]:
    there, expected = {t.name: t for t in got}, {t.name: t for t in wanted}
    found = [f"{where} has no {what} {name!r}" for name in expected if name not in there]
    found += [
        f"{where} has an unexpected {what} {name!r}" for name in there if name not in expected
    ]
    found += [f"{where} lists an {what} twice"] if len(there) != len(got) else []
    both = [(there[name], expected[name]) for name in expected if name in there]
    return found + [
        f"{where}: {a.name} is {a.dtype} {a.shape}, not {b.dtype} {b.shape}"
        for a, b in both
        if a != b
    ]


def _is_valid_joint(joint: Joint) -> bool:
    """Safety limits are computed from these numbers, and a NaN would pass every comparison."""
    is_finite = all(math.isfinite(value) for value in (joint.low, joint.high, joint.max_speed))
    return is_finite and joint.low <= joint.high and joint.max_speed >= 0 and joint.unit in UNITS
