"""What six servos say of themselves, against what an SO-101, its calibration and a policy expect.

Knows registers by name and what their values mean for a user. Refuses to write or move anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mtdit_robots import calibration as calibrations
from mtdit_robots import servos
from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus, BusError, open_bus
from mtdit_robots.so101 import IDS, JOINTS
from mtdit_robots.sts3215 import BAUD_CODES, MODEL_NUMBER
from mtdit_runtime.bundle import Manifest
from mtdit_runtime.checks import FAIL, OK, WARN, Check, judged

MAX_SERVO_C = (
    55  # the servo protects itself at 70; a gripper that idles this hot is squeezing something
)
MAX_IDLE_LOAD = 0.2  # of the stall torque, at rest
MAX_VOLTAGE_SPREAD_V = 0.6  # along the chain; more is a bad plug or a thin cable
VOLTAGE_SHARE = 0.15  # a supply may be so far from what the servos are made for
MAX_ERROR_RATE = 0.001  # of the exchanges; with two retries a run does not notice that
GAINS = {
    "P_Coefficient": 16,
    "I_Coefficient": 0,
    "D_Coefficient": 32,
}  # LeRobot's, set at every connect
MAX_IN_A_ROW = 20  # exchanges without any answer: the power is off
BEYOND = 5.0  # degrees a policy may go beyond an arm's range unnoticed: the guards allow as much
OUTSIDE_TICKS = 100  # as `arm.py` refuses
_PROBE_S = 0.02  # per id and rate, when nobody answers


def check_arm(
    port: str,
    calibration: Path | None,
    manifest: Manifest | None,
    servo_volts: float | None = None,
    cycles: int = 1000,
    patience_s: float = 0.05,
    kind: str = "own",
) -> Iterator[Check]:
    """Every check of an arm on its port. cycles: bus exchanges whose errors are counted. kind: of
    bus, own or sdk.
    """
    try:
        bus = open_bus(kind, port, timeout_s=patience_s)
    except UserError as error:
        yield Check("port", FAIL, f"{port} does not open", str(error))
        return
    with bus:
        yield Check("port", OK, f"{port} at 1 Mbit/s")
        try:
            yield from _check_bus(bus, calibration, manifest, servo_volts, cycles)
        except BusError as error:
            yield Check("bus", FAIL, str(error), "check the arm's cables, then try again")
            return
        silent_everywhere = not any(servos.answers(bus, servo) for servo in IDS.values())
    if silent_everywhere:
        yield _other_baud(port)


def _check_bus(
    bus: Bus,
    calibration: Path | None,
    manifest: Manifest | None,
    servo_volts: float | None,
    cycles: int,
) -> Iterator[Check]:
    there = [servo for servo in IDS.values() if servos.answers(bus, servo)]
    for joint, servo in IDS.items():
        yield _check_servo(bus, joint, servo) if servo in there else _silent(joint, servo)
    if not there:
        return
    yield _check_firmware(bus, there)
    yield _check_voltage(bus, there, servo_volts)
    yield _check_gains(bus, there)
    yield _check_errors(bus, there, cycles)
    if len(there) == len(IDS):
        yield _check_calibration(bus, calibration)
        if manifest is not None:
            yield _check_reach(bus, manifest)


def _silent(joint: str, servo: int) -> Check:
    return Check(
        f"servo {servo} {joint}", FAIL, "no answer", "check its cable, its id, and the power supply"
    )


def _check_servo(bus: Bus, joint: str, servo: int) -> Check:
    name = f"servo {servo} {joint}"
    model, tenths = bus.read(servo, "Model_Number"), bus.read(servo, "Present_Voltage")
    heat_c, load = (
        bus.read(servo, "Present_Temperature"),
        abs(bus.read(servo, "Present_Load")) / 1000,
    )
    words = bus.ping(servo)
    finding = f"model {model}, {tenths / 10:.1f} V, {heat_c} C, load {load:.0%}"
    if model != MODEL_NUMBER:
        return Check(name, FAIL, finding, f"an SO-101 has STS3215 servos (model {MODEL_NUMBER})")
    if words:
        return Check(
            name,
            FAIL,
            f"{finding}, reports {', '.join(words)}",
            _FAULTS.get(words[0], _POWER_CYCLE),
        )
    if heat_c > MAX_SERVO_C:
        return Check(name, WARN, finding, "let it cool")
    return judged(
        name,
        load > MAX_IDLE_LOAD,
        finding,
        "something pulls at the joint: free it, or support the arm",
    )


_POWER_CYCLE = "switch the arm's power off and on"
_FAULTS = {
    "voltage": "check the power supply's voltage and plug, then switch the arm off and on",
    "overheat": "let it cool, then switch the arm off and on",
    "overload": "free the joint, then switch the arm off and on",
    "over-current": "free the joint, then switch the arm off and on",
    "angle sensor": "switch the arm off and on; if it comes back, replace the servo",
}


def _check_firmware(bus: Bus, there: list[int]) -> Check:
    major, minor = (
        servos.read(bus, f"Firmware_{part}_Version", there) for part in ("Major", "Minor")
    )
    versions = {servo: f"{major[servo]}.{minor[servo]}" for servo in there}
    finding = ", ".join(sorted(set(versions.values())))
    if len(set(versions.values())) > 1:
        finding = ", ".join(
            f"{servos.JOINT_BY_ID[servo]} {version}" for servo, version in versions.items()
        )
    remedy = "LeRobot refuses mixed firmware: update them all with Feetech's FD software"
    return judged("firmware", len(set(versions.values())) > 1, finding, remedy, FAIL)


def _check_voltage(bus: Bus, there: list[int], servo_volts: float | None) -> Check:
    """Against what the servos themselves allow, against their type if it is known, and along the
    chain.
    """
    volts = {
        servo: value / 10 for servo, value in servos.read(bus, "Present_Voltage", there).items()
    }
    low, high = (servos.read(bus, f"{end}_Voltage_Limit", there) for end in ("Min", "Max"))
    finding = f"{min(volts.values()):.1f} to {max(volts.values()):.1f} V"
    for servo, value in volts.items():
        if not low[servo] / 10 <= value <= high[servo] / 10:
            limits = f"{low[servo] / 10:.1f} to {high[servo] / 10:.1f} V"
            return Check(
                "voltage", FAIL, f"{finding}, {servos.named([servo])} is made for {limits}", _SUPPLY
            )
    mean = sum(volts.values()) / len(volts)
    if servo_volts is not None and abs(mean - servo_volts) > VOLTAGE_SHARE * servo_volts:
        return Check("voltage", FAIL, f"{finding}, the servos are {servo_volts:g} V ones", _SUPPLY)
    spread = max(volts.values()) - min(volts.values()) > MAX_VOLTAGE_SPREAD_V
    return judged(
        "voltage",
        spread,
        finding,
        "it drops along the chain: check the plugs, use a stronger supply",
    )


_SUPPLY = (
    "use the power supply that belongs to the servos (7.4 V types: 5 to 7.4 V, 12 V types: 12 V)"
)


def _check_gains(bus: Bus, there: list[int]) -> Check:
    """What the servos hold now. Not compared with a bundle: LeRobot's datasets, and so bundles,
    keep no gains.

    Recordings are made with what LeRobot's follower sets at every connect, and so do we: no fault
    of the arm.
    """
    held = {name: set(servos.read(bus, name, there).values()) for name in GAINS}
    finding = ", ".join(
        f"{name[0]} {'/'.join(map(str, sorted(values)))}" for name, values in held.items()
    )
    same = all(values == {GAINS[name]} for name, values in held.items())
    wanted = "LeRobot's, with which demonstrations are recorded"
    return Check(
        "gains",
        OK,
        f"{finding}: {wanted}" if same else f"{finding}; at connect P 16, I 0, D 32: {wanted}",
    )


def _check_errors(bus: Bus, there: list[int], cycles: int) -> Check:
    """Replies that did not come, in plain exchanges without a retry."""
    retries, bus.retries = bus.retries, 0
    try:
        lost, in_a_row = dict.fromkeys(there, 0), 0
        for _ in range(cycles):
            answers = bus.sync_read("Present_Position", there)
            in_a_row = 0 if answers else in_a_row + 1
            if in_a_row > MAX_IN_A_ROW:
                raise BusError(f"nobody on {bus.port} answers any more")
            for servo in there:
                lost[servo] += servo not in answers
    finally:
        bus.retries = retries
    total, asked = sum(lost.values()), cycles * len(there)
    named = ", ".join(f"{servos.JOINT_BY_ID[servo]} {n}" for servo, n in lost.items() if n)
    finding = f"{total} of {asked} replies lost in {cycles} cycles" + (
        f" ({named})" if named else ""
    )
    remedy = (
        "check the plugs at these servos, keep USB and motor cables apart, try another USB port"
    )
    return judged("bus errors", total > MAX_ERROR_RATE * asked, finding, remedy)


def _check_calibration(bus: Bus, path: Path | None) -> Check:
    """File against EEPROM, and the pose against both."""
    held = servos.read_calibration(bus)
    if path is None:
        return Check(
            "calibration", WARN, "not compared, no file was given", "pass --calibration FILE"
        )
    try:
        wanted = calibrations.load(path)
    except UserError as error:
        return Check("calibration", FAIL, f"{path} cannot be used", str(error))
    wrong = calibrations.differences(wanted, held)
    if wrong:
        remedy = f"pass this arm's own file, or: mtdit calibrate --port {bus.port} --import {path}"
        return Check(
            "calibration", FAIL, f"{len(wrong)} values differ: {'; '.join(wrong[:3])}", remedy
        )
    ticks = servos.read(bus, "Present_Position")
    outside = [
        joint
        for joint in JOINTS
        if not wanted[joint].range_min - OUTSIDE_TICKS
        <= ticks[IDS[joint]]
        <= wanted[joint].range_max + OUTSIDE_TICKS
    ]
    remedy = "move it inside by hand; if it cannot be, calibrate again"
    finding = (
        f"{', '.join(outside)} outside its range"
        if outside
        else "file and servos agree, the pose is inside"
    )
    return judged("calibration", bool(outside), finding, remedy, FAIL)


def _check_reach(bus: Bus, manifest: Manifest) -> Check:
    """Whether this arm can go where the policy was trained to go."""
    try:
        low, high = calibrations.ranges(servos.read_calibration(bus)).bounds()
    except UserError as error:
        return Check("reach", WARN, "not compared, the servos hold no calibration", str(error))
    reach = {joint: (low[i], high[i]) for i, joint in enumerate(JOINTS)}
    short = [
        f"{joint.name} {joint.low:.0f} to {joint.high:.0f}, here {lowest:.0f} to {highest:.0f}"
        for joint in manifest.joints
        for lowest, highest in [reach.get(joint.name, (joint.low, joint.high))]
        if joint.low < lowest - BEYOND or joint.high > highest + BEYOND
    ]
    finding = (
        f"the policy goes {'; '.join(short)}"
        if short
        else "the policy's joint ranges lie within this arm's"
    )
    remedy = "calibrate over each joint's whole travel, as the arm was that it learnt from"
    return judged("reach", bool(short), finding, remedy)


def _other_baud(port: str) -> Check:
    """Nobody answers at 1 Mbit/s: somebody may at another rate."""
    for baud in list(BAUD_CODES)[1:]:
        with Bus(port, baud, timeout_s=_PROBE_S, retries=0) as bus:
            found = [servo for servo in IDS.values() if servos.answers(bus, servo)]
        if found:
            finding = f"ids {', '.join(map(str, found))} answer at {baud} bit/s"
            return Check(
                "baud", FAIL, finding, f"set them to 1 Mbit/s: mtdit setup-motors --port {port}"
            )
    return Check(
        "baud",
        FAIL,
        "nobody answers at any rate",
        "switch the arm's power on, and check that this is its port",
    )
