"""Calibration files as people have them, drawn at random: sound ones with every liberty, and
damaged ones with the fault that is in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdit_robots.so101.calibration import KEYS
from mtdit_robots.so101.joints import IDS, JOINTS

Raw = dict[str, Any]
Damage = Callable[[np.random.Generator, Raw], Any]
AGAIN = "run `mtdit calibrate`"


@dataclass(frozen=True)
class Drawn:
    """A file's text; what an error about it may say, one pattern per fault, none if it is sound."""

    text: str
    faults: tuple[str, ...]


def drawn(rng: np.random.Generator) -> Drawn:
    """Half of them sound, a third with one fault, the rest with two."""
    content, faults = sound(rng), []
    for i in rng.permutation(len(FAULTS))[: rng.choice([0, 0, 0, 1, 1, 2])]:
        if takes_a_fault(content):
            says, damage = FAULTS[i]
            content = damage(rng, content)
            faults.append(says)
    return Drawn(written(rng, content), tuple(faults))


def takes_a_fault(content: Any) -> bool:
    """Whether all joints and keys are there, so that a second fault can be put in."""
    entries = [content.get(name) for name in JOINTS] if isinstance(content, dict) else [None]
    return all(isinstance(entry, dict) and entry.keys() == set(KEYS) for entry in entries)


def sound(rng: np.random.Generator) -> Raw:
    """Joints in any order, keys in any order, ranges from the narrowest to a whole turn."""
    content: Raw = {}
    for i in rng.permutation(len(JOINTS)):
        low, high = span(rng)
        values = {
            "id": IDS[JOINTS[i]],
            "drive_mode": int(rng.integers(2)),
            "homing_offset": int(rng.choice([0, 2047, -2047, rng.integers(-2047, 2048)])),
            "range_min": low,
            "range_max": high,
        }
        content[JOINTS[i]] = {key: values[key] for key in rng.permutation(list(values)).tolist()}
    return content


def span(rng: np.random.Generator) -> tuple[int, int]:
    kind = rng.integers(5)
    if kind == 0:
        return 0, 4095
    width = 200 if kind == 1 else int(rng.integers(200, 4096))
    low = int(rng.choice([0, 4095 - width, rng.integers(0, 4096 - width)]))
    return low, low + width


def written(rng: np.random.Generator, content: Any) -> str:
    """As LeRobot indents it, in one line, or with spaces around; a joint may be there twice, and
    then the last counts.
    """
    indent = [4, None, 1][rng.integers(3)]
    text = json.dumps(content, indent=indent)
    if isinstance(content, dict) and len(content) == len(JOINTS) and rng.random() < 0.1:
        name = str(rng.choice(list(content)))
        text = "{" + f"{json.dumps(name)}: {json.dumps(sound(rng)[JOINTS[0]])}, " + text[1:]
    return f"\n {text}\n" if rng.random() < 0.2 else text


def pick(rng: np.random.Generator) -> str:
    return str(rng.choice(JOINTS))


def setting(key: str, *values: Any) -> Damage:
    """Another value of one key of a joint; a function makes it from the good one."""

    def damage(rng: np.random.Generator, content: Raw) -> Raw:
        joint, value = pick(rng), values[rng.integers(len(values))]
        good = content[joint].get(key, 0)
        changed = value(good) if callable(value) else value
        return {**content, joint: {**content[joint], key: changed}}

    return damage


def ranged(*pairs: tuple[int, int]) -> Damage:
    def damage(rng: np.random.Generator, content: Raw) -> Raw:
        joint, (low, high) = pick(rng), pairs[rng.integers(len(pairs))]
        return {**content, joint: {**content[joint], "range_min": low, "range_max": high}}

    return damage


def of_another_kind(rng: np.random.Generator, content: Raw) -> Raw:
    """A float, a string, a truth value, nothing, a list: what is not a whole number."""
    key = str(rng.choice(KEYS))
    kinds = (float, str, bool, lambda n: n + 0.5, lambda n: [n], lambda n: None, lambda n: 1e400)
    return setting(key, *kinds)(rng, content)  # type: ignore[no-any-return]


def swapped(rng: np.random.Generator, content: Raw) -> Raw:
    """The numbers of two servos, as after a wrong plug; of one twice; all turned round by one."""
    one, other = rng.permutation(JOINTS)[:2].tolist()
    ids = {name: entry.get("id") for name, entry in content.items()}
    turned = dict(zip(ids, [*list(ids.values())[1:], *list(ids.values())[:1]], strict=True))
    choices = ({**ids, one: ids[other], other: ids[one]}, {**ids, one: ids[other]}, turned)
    chosen = choices[rng.integers(len(choices))]
    return {name: {**entry, "id": chosen[name]} for name, entry in content.items()}


def missing_joint(rng: np.random.Generator, content: Raw) -> Raw:
    gone = set(rng.permutation(JOINTS)[: rng.integers(1, 4)].tolist())
    return {name: entry for name, entry in content.items() if name not in gone}


def misspelt(rng: np.random.Generator, content: Raw) -> Raw:
    joint = pick(rng)
    other = [joint.upper(), joint.replace("_", "-") + "s", f"{joint}.pos"][rng.integers(3)]
    return {other if name == joint else name: entry for name, entry in content.items()}


def extra_motor(rng: np.random.Generator, content: Raw) -> Raw:
    names = ("wrist_yaw", "base_left_wheel", "head_motor_1")
    more = names[: rng.integers(1, len(names) + 1)]
    entry = content[pick(rng)]
    return {**content, **{name: {**entry, "id": 7 + i} for i, name in enumerate(more)}}


def missing_key(rng: np.random.Generator, content: Raw) -> Raw:
    joint = pick(rng)
    gone = str(rng.choice(sorted(content[joint])))
    return {**content, joint: {k: v for k, v in content[joint].items() if k != gone}}


def extra_key(rng: np.random.Generator, content: Raw) -> Raw:
    joint, key = pick(rng), str(rng.choice(["rang_min", "gear_ratio", "norm_mode", "Id"]))
    return {**content, joint: {**content[joint], key: 1}}


def no_entry(rng: np.random.Generator, content: Raw) -> Raw:
    return {**content, pick(rng): [[1, 0, 0, 900, 3000], 5, None, "1"][rng.integers(4)]}


def prefixed(*prefixes: str) -> Damage:
    def damage(rng: np.random.Generator, content: Raw) -> Raw:
        prefix = prefixes[rng.integers(len(prefixes))]
        return {prefix + name: entry for name, entry in content.items()}

    return damage


def lists(rng: np.random.Generator, content: Raw) -> Raw:
    """What LeRobot wrote before 0.2."""
    return {
        "homing_offset": rng.integers(-4000, 4000, 6).tolist(),
        "drive_mode": rng.integers(0, 2, 6).tolist(),
        "start_pos": rng.integers(0, 4096, 6).tolist(),
        "end_pos": rng.integers(0, 4096, 6).tolist(),
        "calib_mode": ["DEGREE"] * 5 + ["LINEAR"],
        "motor_names": list(JOINTS),
    }


def other_arm(rng: np.random.Generator, content: Raw) -> Raw:
    return {f"joint_{i}": entry for i, entry in enumerate(content.values())}


def no_object(rng: np.random.Generator, content: Raw) -> Any:
    return [list(content.values()), 5, "arm", None][rng.integers(4)]


ANY = f"({'|'.join(JOINTS)})"
UNKNOWN = rf"unknown joint '.*'( \(did you mean '{ANY}'|, known are .*; {AGAIN})"
# what may be refused, and what the refusal must say: the joint, if one is at fault
FAULTS: tuple[tuple[str, Damage], ...] = (
    (rf"{ANY} \w+ is .*, must be an integer; {AGAIN}", of_another_kind),
    (rf"{ANY} has id .* on an SO-101 it is \d; {AGAIN}", swapped),
    (rf"{ANY} has id .* on an SO-101 it is \d; {AGAIN}", setting("id", 0, 7, -1, 253)),
    (rf"{ANY} has drive_mode .*, must be 0 or 1; {AGAIN}", setting("drive_mode", 2, -1, 255)),
    (
        rf"{ANY} homing_offset .* is beyond \+-2047; {AGAIN}",
        setting("homing_offset", 2048, -2048, -4096, 10**30),
    ),
    (
        rf"{ANY} range .* is not within 0\.\.4095; {AGAIN}",
        ranged((-1, 3000), (900, 4096), (-4096, 8191), (0, 10**20)),
    ),
    (rf"{ANY} range .* runs backwards.*; {AGAIN}", ranged((3000, 900), (4095, 0), (901, 900))),
    (
        rf"{ANY} range .* is narrower than 200 ticks.*; {AGAIN}",
        ranged((2000, 2000), (0, 0), (0, 199), (4095, 4095), (3896, 4095)),
    ),
    (rf"missing joint: {ANY}.*; {AGAIN}", missing_joint),
    (UNKNOWN, misspelt),
    (rf"it has \d motors, and an SO-101 has 6: .* {AGAIN}|{UNKNOWN}", extra_motor),
    (rf"missing key of {ANY}: \w+; {AGAIN}", missing_key),
    (rf"unknown key of {ANY} '\w+'( \(did you mean |, known are .*; {AGAIN})", extra_key),
    (rf"{ANY} is not an object with the keys .*; {AGAIN}", no_entry),
    (rf"name of a LeRobot before 0\.2.* {AGAIN}", prefixed("main_", "main_follower_")),
    (rf"of another arm, with the motors .* {AGAIN}", prefixed("left_", "right_arm_", "leader.")),
    (rf"of another arm, with the motors .* {AGAIN}", other_arm),
    (rf"lists of a LeRobot before 0\.2.* {AGAIN}", lists),
    (r"is not a JSON object .*; use the file that `mtdit calibrate` wrote", no_object),
)
