"""The register table against LeRobot's, and sign-magnitude values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot.motors.feetech import tables

from mtdit_robots.bus.sts3215 import (
    BAUD_CODES,
    MODEL_NUMBER,
    REGISTERS,
    decode,
    encode,
    error_words,
)


def test_every_register_of_lerobot_has_the_same_place() -> None:
    theirs = {name.strip(): place for name, place in tables.STS_SMS_SERIES_CONTROL_TABLE.items()}
    assert {name: (r.address, r.width) for name, r in REGISTERS.items()} == theirs


def test_signs_bauds_and_model_are_lerobots() -> None:
    signs = {
        name: bit
        for name, bit in tables.STS_SMS_SERIES_ENCODINGS_TABLE.items()
        if name in REGISTERS
    }
    assert {name: r.sign_bit for name, r in REGISTERS.items() if r.sign_bit is not None} == signs
    assert tables.STS_SMS_SERIES_BAUDRATE_TABLE == BAUD_CODES
    assert tables.MODEL_NUMBER_TABLE["sts3215"] == MODEL_NUMBER


@pytest.mark.parametrize(
    ("name", "value", "data"),
    [
        ("Homing_Offset", -123, "7b08"),
        ("Homing_Offset", -2047, "ff0f"),
        ("Goal_Position", -5, "0580"),
        ("Goal_Position", 2047, "ff07"),
        ("Present_Load", -1000, "e807"),
        ("Torque_Enable", 1, "01"),
    ],
)
def test_golden_values(name: str, value: int, data: str) -> None:
    assert encode(REGISTERS[name], value).hex() == data
    assert decode(REGISTERS[name], bytes.fromhex(data)) == value


@given(st.sampled_from(sorted(REGISTERS)), st.integers(-40000, 70000))
def test_what_fits_comes_back_and_the_rest_is_refused(name: str, value: int) -> None:
    register = REGISTERS[name]
    limit = 1 << (8 * register.width if register.sign_bit is None else register.sign_bit)
    lowest = 0 if register.sign_bit is None else 1 - limit
    if lowest <= value < limit:
        assert decode(register, encode(register, value)) == value
    else:
        with pytest.raises(ValueError, match=f"{name} must be {lowest}..{limit - 1}, not {value}"):
            encode(register, value)


def test_error_bits_read_as_words() -> None:
    assert error_words(0) == ()
    assert error_words(1 | 32) == ("voltage", "overload")
    assert error_words(64) == ("bit 0x40",)
