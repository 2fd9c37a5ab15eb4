"""Whatever is in the JSON files of a checkpoint, it opens or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from damaged import FILES, HUGE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtdit.checkpoint.read import open_checkpoint
from mtdit_export.preflight import joints_of, robot_facts
from mtdit_robots.errors import UserError

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from((10**30, -HUGE, 2**63, 10**6)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def opens_or_explains(folder: Path) -> None:
    try:
        opened = open_checkpoint(folder)
        joints_of(opened, robot_facts(opened, None))
        opened.clip_shape({})
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017, one line is the contract


@given(file=st.sampled_from(FILES), value=ANYTHING)
@settings(max_examples=200, **SETTINGS)
def test_any_json_as_any_file(file: str, value: Any, copy: Path, checkpoint: Path) -> None:
    (copy / file).write_text(json.dumps(value))
    opens_or_explains(copy)
    shutil.copyfile(checkpoint / file, copy / file)


@given(file=st.sampled_from(FILES), data=st.data(), value=ANYTHING)
@settings(max_examples=600, **SETTINGS)
def test_any_value_anywhere(file: str, data: Any, value: Any, copy: Path, checkpoint: Path) -> None:
    content = json.loads((checkpoint / file).read_text())
    place: Any = content
    while True:
        key = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and data.draw(st.integers(0, 3)) == 0:
        del place[key]
        key = data.draw(TEXT)
    place[key] = value
    (copy / file).write_text(json.dumps(content))
    opens_or_explains(copy)
    shutil.copyfile(checkpoint / file, copy / file)
