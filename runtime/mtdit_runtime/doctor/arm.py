"""Checks an arm: the values in its six servos against an SO-101, its calibration and a policy.

Nothing is written to the servos and nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.open import open_bus
from mtdit_robots.bus.sts3215 import BAUD_CODES, MODEL_NUMBER
from mtdit_robots.errors import UserError
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import servos
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.units import ARM_UNITS, DEGREES
from mtdit_runtime.bundle.manifest import Manifest
from mtdit_runtime.check import FAIL, OK, WARN, Check, judged

MAX_SERVO_C = 55  # the servo switches off at 70; a gripper this hot at rest squeezes something
MAX_IDLE_LOAD = 0.2  # part of the stall torque, at rest
MAX_VOLTAGE_SPREAD_V = 0.6  # between servos; more means a bad plug or a thin cable
VOLTAGE_SHARE = 0.15  # how far the supply may be from the servos' nominal voltage
MAX_ERROR_RATE = 0.001  # lost replies; with two retries a run does not notice fewer
MAX_IN_A_ROW = 20  # reads in a row without any reply: the power is off
MAX_BEYOND_DEG = 5.0  # degrees that a policy may exceed the arm's range: the guards allow as much
_PROBE_S = 0.02  # timeout per id and baud rate, when no servo answers at 1 Mbit/s


def check_arm(
    port: str,
    calibration: Path | None,
    manifest: Manifest | None,
    servo_volts: float | None = None,
    cycles: int = 1000,
    bus_timeout_s: float = 0.05,
    kind: str = "own",
    units: str | None = None,
) -> Iterator[Check]:
    """All checks of the arm at `port`.

    cycles: bus reads in which lost replies are counted. bus_timeout_s: timeout of a reply. kind:
    the bus implementation, own or sdk. units: of the policy, if its bundle does not say it.
    """
    try:
        bus = open_bus(kind, port, timeout_s=bus_timeout_s)
    except UserError as error:
        yield Check("port", FAIL, f"cannot open {port}", str(error))
        return
    with bus:
        yield Check("port", OK, f"{port} at 1 Mbit/s")
        try:
            yield from _check_bus(bus, calibration, manifest, servo_volts, cycles, units)
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
    units: str | None,
) -> Iterator[Check]:
    ids = [servo for servo in IDS.values() if servos.answers(bus, servo)]
    for joint, servo in IDS.items():
        if servo in ids:
            yield _check_servo(bus, joint, servo)
        else:
            remedy = "check its cable, its id, and the power supply"
            yield Check(f"servo {servo} {joint}", FAIL, "no answer", remedy)
    if not ids:
        return
    yield _check_firmware(bus, ids)
    yield _check_voltage(bus, ids, servo_volts)
    yield _check_gains(bus, ids)
    yield _check_errors(bus, ids, cycles)
    if len(ids) == len(IDS):
        yield _check_calibration(bus, calibration)
        if manifest is not None:
            yield _check_reach(bus, manifest, units or manifest.units)


def _check_servo(bus: Bus, joint: str, servo: int) -> Check:
    name = f"servo {servo} {joint}"
    model, tenths = bus.read(servo, "Model_Number"), bus.read(servo, "Present_Voltage")
    heat_c = bus.read(servo, "Present_Temperature")
    load = abs(bus.read(servo, "Present_Load")) / 1000
    faults = bus.ping(servo)
    finding = f"model {model}, {tenths / 10:.1f} V, {heat_c} C, load {load:.0%}"
    if model != MODEL_NUMBER:
        return Check(name, FAIL, finding, f"an SO-101 has STS3215 servos (model {MODEL_NUMBER})")
    if faults:
        remedy = _FAULTS.get(faults[0], _POWER_CYCLE)
        return Check(name, FAIL, f"{finding}, reports {', '.join(faults)}", remedy)
    if heat_c > MAX_SERVO_C:
        return Check(name, WARN, finding, "let it cool down")
    remedy = "something pulls on the joint: free it, or support the arm"
    return judged(name, load > MAX_IDLE_LOAD, finding, remedy)


_POWER_CYCLE = "switch the arm's power off and on"
_FAULTS = {
    "voltage": "check the power supply's voltage and plug, then switch the arm off and on",
    "overheat": "let it cool down, then switch the arm off and on",
    "overload": "free the joint, then switch the arm off and on",
    "over-current": "free the joint, then switch the arm off and on",
    "angle sensor": "switch the arm off and on; if the error returns, replace the servo",
}


def _check_firmware(bus: Bus, ids: list[int]) -> Check:
    major, minor = (
        servos.read(bus, f"Firmware_{part}_Version", ids) for part in ("Major", "Minor")
    )
    versions = {servo: f"{major[servo]}.{minor[servo]}" for servo in ids}
    finding = ", ".join(sorted(set(versions.values())))
    if len(set(versions.values())) > 1:
        finding = ", ".join(
            f"{servos.JOINT_BY_ID[servo]} {version}" for servo, version in versions.items()
        )
    remedy = "LeRobot refuses mixed firmware: update all servos with Feetech's FD software"
    return judged("firmware", len(set(versions.values())) > 1, finding, remedy, FAIL)


def _check_voltage(bus: Bus, ids: list[int], servo_volts: float | None) -> Check:
    """Compare with the limits stored in the servos, with `servo_volts` if given, and between the
    servos of the chain.
    """
    tenths = servos.read(bus, "Present_Voltage", ids)
    volts = {servo: value / 10 for servo, value in tenths.items()}
    low, high = (servos.read(bus, f"{end}_Voltage_Limit", ids) for end in ("Min", "Max"))
    finding = f"{min(volts.values()):.1f} to {max(volts.values()):.1f} V"
    for servo, value in volts.items():
        if not low[servo] / 10 <= value <= high[servo] / 10:
            limits = f"{low[servo] / 10:.1f} to {high[servo] / 10:.1f} V"
            finding = f"{finding}, {servos.named([servo])} is made for {limits}"
            return Check("voltage", FAIL, finding, _SUPPLY)
    mean = sum(volts.values()) / len(volts)
    if servo_volts is not None and abs(mean - servo_volts) > VOLTAGE_SHARE * servo_volts:
        finding = f"{finding}, but these are {servo_volts:g} V servos"
        return Check("voltage", FAIL, finding, _SUPPLY)
    drops = max(volts.values()) - min(volts.values()) > MAX_VOLTAGE_SPREAD_V
    remedy = "the voltage drops along the chain: check the plugs, use a stronger power supply"
    return judged("voltage", drops, finding, remedy)


_SUPPLY = "use the power supply for these servos (7.4 V types: 5 to 7.4 V, 12 V types: 12 V)"


def _check_gains(bus: Bus, ids: list[int]) -> Check:
    """The gains in the servos now; always OK.

    LeRobot's follower sets its gains at every connect, and so does ours, so other gains do no harm.
    They cannot be compared with a bundle: LeRobot's datasets, and so bundles, store no gains.
    """
    gains = {name: set(servos.read(bus, name, ids).values()) for name in servos.GAINS}
    finding = ", ".join(
        f"{name[0]} {'/'.join(map(str, sorted(values)))}" for name, values in gains.items()
    )
    lerobot = "the gains of LeRobot, used for recording demonstrations"
    if all(values == {servos.GAINS[name]} for name, values in gains.items()):
        return Check("gains", OK, f"{finding}: {lerobot}")
    return Check("gains", OK, f"{finding}; connecting sets P 16, I 0, D 32: {lerobot}")


def _check_errors(bus: Bus, ids: list[int], cycles: int) -> Check:
    """Count lost replies in reads without retries."""
    retries, bus.retries = bus.retries, 0
    try:
        lost, in_a_row = dict.fromkeys(ids, 0), 0
        for _ in range(cycles):
            answers = bus.sync_read("Present_Position", ids)
            in_a_row = 0 if answers else in_a_row + 1
            if in_a_row > MAX_IN_A_ROW:
                raise BusError(f"no servo on {bus.port} answers any more")
            for servo in ids:
                lost[servo] += servo not in answers
    finally:
        bus.retries = retries
    total, asked = sum(lost.values()), cycles * len(ids)
    named = ", ".join(f"{servos.JOINT_BY_ID[servo]} {n}" for servo, n in lost.items() if n)
    finding = f"{total} of {asked} replies lost in {cycles} cycles"
    if named:
        finding = f"{finding} ({named})"
    remedy = (
        "check the plugs at these servos, keep USB and motor cables apart, try another USB port"
    )
    return judged("bus errors", total > MAX_ERROR_RATE * asked, finding, remedy)


def _check_calibration(bus: Bus, path: Path | None) -> Check:
    """Compare the file with the servos' EEPROM, and the pose with the calibrated ranges."""
    stored = servos.read_calibration(bus)
    if path is None:
        finding = "not compared, no file was given"
        return Check("calibration", WARN, finding, "pass --calibration FILE")
    try:
        wanted = calibrations.load(path)
    except UserError as error:
        return Check("calibration", FAIL, f"cannot use {path}", str(error))
    wrong = calibrations.servo_differences(wanted, stored)
    if wrong:
        finding = f"{len(wrong)} values differ: {'; '.join(wrong[: servos.LISTED])}"
        finding = f"{finding}; {calibrations.not_compared(wanted)}"
        remedy = f"pass the file of this arm, or: mtdit calibrate --port {bus.port} --import {path}"
        return Check("calibration", FAIL, finding, remedy)
    ticks = servos.read(bus, "Present_Position")
    outside = [joint for joint in JOINTS if not wanted[joint].allows(ticks[IDS[joint]])]
    if not outside:
        finding = "file and servos agree, every joint is inside its range"
        if calibrations.lost(wanted, stored):
            finding = f"{finding}; {calibrations.not_compared(wanted)}"
        return Check("calibration", OK, finding)
    remedy = "move it into its range by hand; if that is not possible, calibrate again"
    return Check("calibration", FAIL, f"outside the calibrated range: {', '.join(outside)}", remedy)


def _check_reach(bus: Bus, manifest: Manifest, units: str) -> Check:
    """Whether the arm's calibrated ranges contain the joint ranges of the training data."""
    if units not in ARM_UNITS:
        remedy = "add --units degrees or --units normalized"
        return Check("reach", WARN, f"not compared, the unit of the policy is {units}", remedy)
    try:
        stored = servos.read_calibration(bus)
        low, high = calibrations.ranges(stored, units == DEGREES).bounds()
    except UserError as error:
        return Check("reach", WARN, "not compared, the servos are not calibrated", str(error))
    reach = {joint: (low[i], high[i]) for i, joint in enumerate(JOINTS)}
    short = [
        f"{joint.name} {joint.low:.0f} to {joint.high:.0f}, this arm {lowest:.0f} to {highest:.0f}"
        for joint in manifest.joints
        for lowest, highest in [reach.get(joint.name, (joint.low, joint.high))]
        if joint.low < lowest - MAX_BEYOND_DEG or joint.high > highest + MAX_BEYOND_DEG
    ]
    if not short:
        return Check("reach", OK, "the policy's joint ranges are within those of this arm")
    finding = f"the policy moves {'; '.join(short)}"
    remedy = "calibrate each joint over its whole travel, as on the arm of the training data"
    return Check("reach", WARN, finding, remedy)


def _other_baud(port: str) -> Check:
    """No servo answers at 1 Mbit/s: try the other baud rates."""
    for baud in list(BAUD_CODES)[1:]:
        with Bus(port, baud, timeout_s=_PROBE_S, retries=0) as bus:
            found = [servo for servo in IDS.values() if servos.answers(bus, servo)]
        if found:
            finding = f"ids {', '.join(map(str, found))} answer at {baud} bit/s"
            remedy = f"set them to 1 Mbit/s: mtdit setup-motors --port {port}"
            return Check("baud", FAIL, finding, remedy)
    remedy = "switch the arm's power on, and check that this is its port"
    return Check("baud", FAIL, "no servo answers at any baud rate", remedy)
