"""One virtual servo: rights, EEPROM and its lock, limits, offset, and what the physics sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtdit_robots.bus.sts3215 import REGISTERS, encode
from mtdit_robots.twin.registers import ServoRegisters


def write(servo: ServoRegisters, name: str, value: int) -> bool:
    return servo.write(REGISTERS[name].address, encode(REGISTERS[name], value))


def test_factory_state() -> None:
    servo = ServoRegisters(4)
    assert (servo.servo_id, servo.baud, servo.get("Model_Number")) == (4, 1_000_000, 777)
    assert servo.answers_writes
    assert servo.return_delay_s == pytest.approx(500e-6)
    assert not servo.torque_enabled
    assert (servo.p_gain, servo.i_gain, servo.d_gain, servo.operating_mode) == (32, 0, 32, 0)
    assert servo.torque_limit == 1.0
    assert (
        servo.get("Present_Position")
        == servo.get("Goal_Position")
        == servo.goal_actual_ticks
        == 2048
    )
    assert servo.get("Lock") == 1


def test_eeprom_lasts_only_when_unlocked() -> None:
    servo = ServoRegisters(1)
    write(servo, "P_Coefficient", 16)
    assert servo.p_gain == 16
    servo.power_cycle()
    assert servo.p_gain == 32

    write(servo, "Lock", 0)
    write(servo, "P_Coefficient", 16)
    write(servo, "Max_Torque_Limit", 500)
    write(servo, "Torque_Enable", 1)
    servo.power_cycle()
    assert servo.p_gain == 16
    assert servo.get("Torque_Limit") == 500
    assert servo.get("Lock") == 1
    assert not servo.torque_enabled


def test_read_only_registers_stay() -> None:
    servo = ServoRegisters(1)
    before = servo.read(0, 87)
    for register in REGISTERS.values():
        if not register.writable:
            write(servo, register.name, 1)
    assert servo.read(0, 87) == before


@given(st.integers(0, 255), st.binary(max_size=40))
def test_no_write_breaks_the_register_file(address: int, data: bytes) -> None:
    servo = ServoRegisters(1)
    servo.write(address, data)
    assert servo.get("Model_Number") == 777
    assert len(servo.read(0, 87)) == 87
    assert servo.read(250, 6) == bytes(6)
    assert isinstance(servo.goal_actual_ticks, int)


def test_present_is_actual_minus_offset_within_one_turn() -> None:
    servo = ServoRegisters(1)
    write(servo, "Homing_Offset", -1000)
    servo.set_present(500)
    assert servo.get("Present_Position") == 1500
    servo.set_present(3500)
    assert servo.get("Present_Position") == 4500 - 4096
    write(servo, "Homing_Offset", 2047)
    assert servo.get("Present_Position") == 1453
    servo.set_present(500)
    assert servo.get("Present_Position") == 500 - 2047 + 4096
    write(servo, "Phase", 12 | 16)
    assert servo.get("Present_Position") == 500 - 2047


def test_goals_are_clamped_to_the_limits_and_shifted_by_the_offset() -> None:
    servo = ServoRegisters(1)
    write(servo, "Min_Position_Limit", 800)
    write(servo, "Max_Position_Limit", 3300)
    write(servo, "Homing_Offset", 100)
    steered = []
    for goal in (2000, 4000, 100, -500):
        assert write(servo, "Goal_Position", goal)
        steered.append(servo.goal_actual_ticks)
    assert steered == [2100, 3400, 900, 900]
    assert servo.get("Goal_Position") == -500
    write(servo, "Min_Position_Limit", 0)
    write(servo, "Max_Position_Limit", 0)
    assert servo.goal_actual_ticks == -400


def test_only_writes_to_the_goal_report_one() -> None:
    servo = ServoRegisters(1)
    assert not write(servo, "Torque_Enable", 1)
    assert servo.write(41, b"\xfe\x00\x08")
    assert not servo.write(44, b"\0\0")


def test_staged_writes_wait_for_action() -> None:
    servo = ServoRegisters(1)
    servo.stage(42, encode(REGISTERS["Goal_Position"], 1000))
    assert servo.get("Goal_Position") == 2048
    assert servo.action()
    assert servo.get("Goal_Position") == 1000
    assert not servo.action()


def gripper() -> ServoRegisters:
    """Energised, with the limits of the driver: 25 % of the torque is an overload, after 2 s."""
    servo = ServoRegisters(6)
    for name, value in {
        "Max_Torque_Limit": 500,
        "Protection_Current": 250,
        "Overload_Torque": 25,
    }.items():
        write(servo, name, value)
    write(servo, "Torque_Enable", 1)
    return servo


def guarded(servo: ServoRegisters, seconds: float, **present: float) -> int:
    for _ in range(round(seconds * 100)):
        servo.set_present(2048, **present)
        servo.protect(0.01)
    return servo.error


def test_an_overload_must_last_and_leaves_protective_torque() -> None:
    servo = gripper()
    assert guarded(servo, 1.9, load=0.4) == 0
    assert servo.torque_limit == 0.5
    assert guarded(servo, 0.05, load=0.1) == 0  # let go in between: it counts anew
    assert guarded(servo, 1.9, load=-0.4) == 0
    assert guarded(servo, 0.2, load=-0.4) == 32
    assert servo.torque_enabled
    assert servo.torque_limit == 0.2
    assert guarded(servo, 1, load=0.2) == 32  # still squeezing, as hard as it may
    assert guarded(servo, 0.02, load=0.05) == 0
    assert servo.torque_limit == 0.5


def test_torque_off_ends_an_overload() -> None:
    servo = gripper()
    assert guarded(servo, 2.5, load=0.4) == 32
    write(servo, "Torque_Enable", 0)
    assert guarded(servo, 0.01, load=0.0) == 0


def test_too_much_current_or_heat_switches_torque_off() -> None:
    servo = gripper()
    assert guarded(servo, 1.9, current=2.0) == 0
    assert servo.torque_enabled
    assert guarded(servo, 0.2, current=2.0) == 8
    assert not servo.torque_enabled
    servo = gripper()
    assert guarded(servo, 0.01, temperature_c=70) == 0
    assert guarded(servo, 0.01, temperature_c=71) == 4
    assert not servo.torque_enabled


@pytest.mark.parametrize(("volts", "bits"), [(3.9, 1), (4.0, 0), (7.4, 0), (14.0, 0), (14.1, 1)])
def test_a_wrong_voltage_is_told_and_takes_no_torque(volts: float, bits: int) -> None:
    servo = gripper()
    assert guarded(servo, 0.01, voltage_v=volts) == bits
    assert servo.torque_enabled


def test_unloading_can_be_switched_off() -> None:
    servo = gripper()
    write(servo, "Unloading_Condition", 0)
    assert guarded(servo, 2.5, load=0.4, temperature_c=80) == 32 | 4
    assert servo.torque_enabled
    assert servo.torque_limit == 0.5


def test_a_fault_from_outside_stays_until_power_off() -> None:
    servo = gripper()
    servo.error = 2
    assert guarded(servo, 0.01, voltage_v=3) == 2 | 1
    assert guarded(servo, 0.01) == 2
    servo.power_cycle()
    assert servo.error == 0


def test_the_physics_reports_in_units() -> None:
    servo = ServoRegisters(1)
    servo.set_present(
        2048.6, velocity_ticks_s=-50, load=-0.25, temperature_c=31.4, voltage_v=7.1, current=0.65
    )
    names = ("Position", "Velocity", "Load", "Temperature", "Voltage", "Current")
    assert [servo.get(f"Present_{name}") for name in names] == [2049, -50, -250, 31, 71, 100]
    assert servo.get("Moving") == 1
    servo.set_present(
        2048, velocity_ticks_s=1e9, load=7, temperature_c=-3, voltage_v=99, current=1e6
    )
    assert [servo.get(f"Present_{name}") for name in names] == [2048, 32767, 1000, 0, 255, 65535]


def test_the_physics_reads_limits_in_units() -> None:
    servo = ServoRegisters(1)
    write(servo, "Torque_Limit", 800)
    write(servo, "Max_Torque_Limit", 500)
    write(servo, "Acceleration", 254)
    write(servo, "Goal_Velocity", -300)
    write(servo, "Torque_Enable", 1)
    assert servo.torque_limit == 0.5
    assert servo.acceleration_ticks_s2 == 25400
    assert servo.goal_velocity_ticks_s == 300
    assert servo.torque_enabled
