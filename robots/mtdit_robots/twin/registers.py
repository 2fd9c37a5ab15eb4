"""The register file of one simulated STS3215.

Models access rights, EEPROM and its lock, position limits, homing offset, factory values and the
servo's protections. The bus reads and writes its bytes; the physics reads goals and gains and
reports the present state.
"""

from __future__ import annotations

from mtdit_robots.bus.sts3215 import (
    BAUD_CODES,
    MODEL_NUMBER,
    REGISTER_FILE_SIZE,
    REGISTERS,
    TICKS_PER_TURN,
    decode,
    encode,
)

_FACTORY = {
    "Firmware_Major_Version": 3,
    "Firmware_Minor_Version": 10,
    "Model_Number": MODEL_NUMBER,
    "Return_Delay_Time": 250,
    "Response_Status_Level": 1,
    "Max_Position_Limit": 4095,
    "Max_Temperature_Limit": 70,
    "Max_Voltage_Limit": 140,
    "Min_Voltage_Limit": 40,
    "Max_Torque_Limit": 1000,
    "Phase": 12,
    "Unloading_Condition": 44,
    "LED_Alarm_Condition": 47,
    "P_Coefficient": 32,
    "D_Coefficient": 32,
    "Minimum_Startup_Force": 16,
    "CW_Dead_Zone": 1,
    "CCW_Dead_Zone": 1,
    "Protection_Current": 500,
    "Angular_Resolution": 1,
    "Protective_Torque": 20,
    "Protection_Time": 200,
    "Overload_Torque": 80,
    "Velocity_closed_loop_P_proportional_coefficient": 10,
    "Over_Current_Protection_Time": 200,
    "Velocity_closed_loop_I_integral_coefficient": 10,
    "Moving_Velocity": 80,
    "DTs": 10,
    "Velocity_Unit_factor": 1,
    "Maximum_Velocity_Limit": 68,
    "Maximum_Acceleration": 0,
    "Acceleration_Multiplier": 1,
}

_PHASE_MULTI_TURN = 0x10
_MOVING_THRESHOLD_TICKS_S = 10.0
_CURRENT_UNIT_A = 0.0065
_BAUD_BY_CODE = {code: baud for baud, code in BAUD_CODES.items()}


def _addresses(**rights: bool) -> frozenset[int]:
    """Every address whose register has these values of `writable` or `eeprom`."""
    chosen = [
        r
        for r in REGISTERS.values()
        if all(getattr(r, right) == wanted for right, wanted in rights.items())
    ]
    return frozenset(address for r in chosen for address in range(r.address, r.address + r.width))


_WRITABLE = _addresses(writable=True)
_EEPROM = _addresses(eeprom=True)
_GOAL = frozenset((42, 43))
_VOLTAGE, _OVERHEAT, _OVER_CURRENT, _OVERLOAD = 1, 4, 8, 32  # sts3215.ERROR_BITS
_GUARD_TICK_S = 0.01  # unit of the protection time registers


class ServoRegisters:
    """The register file of one servo, addresses 0..86, with factory values at first.

    The bus uses `read`, `write`, `stage`, `action`, `servo_id`, `baud`, `error`, `answers_writes`,
    `return_delay_s`. The physics uses the properties below and reports back through `set_present`.
    "Actual ticks" are the encoder's; registers hold Present = Actual - Homing_Offset.
    """

    def __init__(self, servo_id: int) -> None:
        self._memory = bytearray(REGISTER_FILE_SIZE)
        self._staged: tuple[int, bytes] | None = None
        self._actual_ticks = 2048.0
        self._injected = self._guards = 0  # error bits
        self._overload_s = self._over_current_s = 0.0  # how long each has lasted
        for name, value in _FACTORY.items():
            self.set(name, value)
        self.set("ID", servo_id)
        self._eeprom = bytes(self._memory)  # what is restored by a power cycle
        self.power_cycle()

    # For the bus

    def read(self, address: int, length: int) -> bytes:
        """Raw bytes. Addresses beyond the register file read as 0."""
        return bytes(self._memory[address : address + length]).ljust(length, b"\0")

    def write(self, address: int, data: bytes) -> bool:
        """Write raw bytes as a client does; read-only bytes do not change. Returns whether
        Goal_Position was written.

        EEPROM bytes always take effect, but survive a `power_cycle` only if written while Lock is
        0.
        """
        locked = self.get("Lock") != 0
        touched = set(range(address, address + len(data))) & _WRITABLE
        for at in touched:
            self._memory[at] = data[at - address]
        if not locked and touched & _EEPROM:
            self._eeprom = self._persisted(touched & _EEPROM)
        self._refresh_position()
        return bool(touched & _GOAL)

    def stage(self, address: int, data: bytes) -> None:
        """REG_WRITE: store a write until `action`."""
        self._staged = (address, data)

    def action(self) -> bool:
        """ACTION: do the stored write, if any. Returns whether it wrote Goal_Position."""
        staged, self._staged = self._staged, None
        return staged is not None and self.write(*staged)

    def power_cycle(self) -> None:
        """Switch off and on: EEPROM as saved, SRAM as after power-up, torque off."""
        self._memory[:] = self._eeprom
        self._staged = None
        self._injected, self._overload_s, self._over_current_s = 0, 0.0, 0.0
        self._show_errors(guards=0)
        self.set("Lock", 1)
        self.set("Torque_Limit", self.get("Max_Torque_Limit"))
        self.set_present(self._actual_ticks)
        self.set("Goal_Position", self.get("Present_Position"))

    def _persisted(self, addresses: set[int]) -> bytes:
        kept = bytearray(self._eeprom)
        for at in addresses:
            kept[at] = self._memory[at]
        return bytes(kept)

    # Registers by name, without access rights: for the physics, for faults and for tests

    def get(self, name: str) -> int:
        register = REGISTERS[name]
        return decode(register, self.read(register.address, register.width))

    def set(self, name: str, value: int) -> None:
        """Set a register directly, read-only ones too. The value is not saved to EEPROM."""
        register = REGISTERS[name]
        self._memory[register.address : register.address + register.width] = encode(register, value)

    @property
    def servo_id(self) -> int:
        return self.get("ID")

    @property
    def baud(self) -> int | None:
        """Bits/s, or None when Baud_Rate holds an unknown code: such a servo cannot be reached."""
        return _BAUD_BY_CODE.get(self.get("Baud_Rate"))

    @property
    def answers_writes(self) -> bool:
        return self.get("Response_Status_Level") != 0

    @property
    def return_delay_s(self) -> float:
        """Delay before a reply."""
        return self.get("Return_Delay_Time") * 2e-6

    @property
    def error(self) -> int:
        """Error bits sent with every reply (sts3215.ERROR_BITS), as in the Status register. Bits
        set here stay until power-off.
        """
        return self.get("Status")

    @error.setter
    def error(self, bits: int) -> None:
        self._injected = bits
        self._show_errors(self._guards)

    # For the physics

    @property
    def torque_enabled(self) -> bool:
        return self.get("Torque_Enable") != 0

    @property
    def torque_limit(self) -> float:
        """Fraction 0..1 of the stall torque: the lower of Torque_Limit and Max_Torque_Limit, or
        Protective_Torque after an overload if that is lower.
        """
        limit = min(self.get("Torque_Limit"), self.get("Max_Torque_Limit"), 1000) / 1000
        overloaded = self._guards & self.get("Unloading_Condition") & _OVERLOAD
        return min(limit, self.get("Protective_Torque") / 100) if overloaded else limit

    @property
    def p_gain(self) -> int:
        return self.get("P_Coefficient")

    @property
    def i_gain(self) -> int:
        return self.get("I_Coefficient")

    @property
    def d_gain(self) -> int:
        return self.get("D_Coefficient")

    @property
    def operating_mode(self) -> int:
        return self.get("Operating_Mode")

    @property
    def goal_velocity_ticks_s(self) -> int:
        """Speed limit on the way to the goal; 0: none."""
        return abs(self.get("Goal_Velocity"))

    @property
    def acceleration_ticks_s2(self) -> int:
        """Acceleration limit on the way to the goal; 0: none."""
        return self.get("Acceleration") * 100

    @property
    def goal_actual_ticks(self) -> int:
        """The servo's target in encoder ticks: the goal clipped to the position limits, plus the
        homing offset.

        As on the real servo, there is no limit when both limits are 0.
        """
        low, high = self.get("Min_Position_Limit"), self.get("Max_Position_Limit")
        goal = self.get("Goal_Position")
        if (low, high) != (0, 0):
            goal = min(max(goal, low), high)
        return goal + self.get("Homing_Offset")

    def set_present(
        self,
        actual_ticks: float,
        velocity_ticks_s: float = 0.0,
        load: float = 0.0,
        temperature_c: float = 25.0,
        voltage_v: float = 7.4,
        current: float = 0.0,
    ) -> None:
        """Report the state of the simulated servo.

        actual_ticks: encoder position, may be beyond one turn. velocity_ticks_s: signed. load:
        -1..1 of the stall torque. current: ampere. Values are clipped to what their register can
        hold.
        """
        self._actual_ticks = actual_ticks
        self._refresh_position()
        self.set("Present_Velocity", _clipped(velocity_ticks_s, 32767))
        self.set("Present_Load", _clipped(load * 1000, 1000))
        self.set("Present_Voltage", _clipped(max(voltage_v, 0.0) * 10, 255))
        self.set("Present_Temperature", _clipped(max(temperature_c, 0.0), 255))
        self.set("Present_Current", _clipped(abs(current) / _CURRENT_UNIT_A, 65535))
        self.set("Moving", int(abs(velocity_ticks_s) > _MOVING_THRESHOLD_TICKS_S))

    def protect(self, seconds: float) -> None:
        """Update the protections after `seconds`. They set error bits; those in Unloading_Condition
        also reduce or remove torque.

        Voltage and temperature act at once, load and current after their protection time. An
        overload limits the torque to Protective_Torque until the load is below that or torque is
        switched off; the others switch torque off. Source: Feetech memory table, addresses 13..15,
        19, 28, 34..36, 38.
        """
        volts, load = self.get("Present_Voltage"), abs(self.get("Present_Load")) / 10
        self._overload_s = self._overload_s + seconds if load > self.get("Overload_Torque") else 0.0
        over_current = self.get("Present_Current") > self.get("Protection_Current")
        self._over_current_s = self._over_current_s + seconds if over_current else 0.0
        guards = {
            _VOLTAGE: not self.get("Min_Voltage_Limit") <= volts <= self.get("Max_Voltage_Limit"),
            _OVERHEAT: self.get("Present_Temperature") > self.get("Max_Temperature_Limit"),
            _OVER_CURRENT: self._lasted(self._over_current_s, "Over_Current_Protection_Time"),
            _OVERLOAD: self._lasted(self._overload_s, "Protection_Time")
            or self._still_overloaded(load),
        }
        self._show_errors(sum(bit for bit, tripped in guards.items() if tripped))
        if self._guards & ~_OVERLOAD & self.get("Unloading_Condition"):
            self.set("Torque_Enable", 0)

    def _lasted(self, seconds: float, name: str) -> bool:
        return seconds > self.get(name) * _GUARD_TICK_S

    def _still_overloaded(self, load: float) -> bool:
        tripped = bool(self._guards & _OVERLOAD)
        return tripped and self.torque_enabled and load >= self.get("Protective_Torque") - 1

    def _show_errors(self, guards: int) -> None:
        self._guards = guards
        self.set("Status", self._injected | guards)

    def _refresh_position(self) -> None:
        """Present = Actual - Homing_Offset, within one turn unless the multi-turn bit of Phase is
        set.
        """
        present = round(self._actual_ticks) - self.get("Homing_Offset")
        if not self.get("Phase") & _PHASE_MULTI_TURN:
            present %= TICKS_PER_TURN
        self.set("Present_Position", _clipped(present, 32767))


def _clipped(value: float, magnitude: int) -> int:
    return max(-magnitude, min(magnitude, round(value)))
