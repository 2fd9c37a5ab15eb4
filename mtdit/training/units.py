"""The unit of the positions that a policy is trained on, which its checkpoint states."""

from __future__ import annotations

from dataclasses import replace

from mtdit.checkpoint.read import Checkpoint
from mtdit.data.frame_cache import FrameCache
from mtdit.stats import DatasetFacts
from mtdit_robots.errors import UserError
from mtdit_robots.units import UNKNOWN
from mtdit_runtime.units import Judged, advice, judge, settled, vectors


def facts_with_units(cache: FrameCache, said: str | None) -> tuple[DatasetFacts, list[str]]:
    """The dataset's facts with the unit that holds for this training, and a line for the user when
    it is not degrees. said: what --units says. UserError when that cannot be right.
    """
    facts = cache.info.facts
    judged = judge(*vectors(facts.state_joints, cache.state, facts.joints, cache.action))
    if judged.units != facts.units and facts.units != UNKNOWN:  # its recorder wrote it down
        judged = Judged(facts.units, "its recorder says so", is_certain=True)
    lines = advice(judged) if said is None else []
    return replace(facts, units=settled(judged, said, facts.dataset)), lines


def check_same_units(facts: DatasetFacts, earlier: Checkpoint | None) -> None:
    """UserError when a training goes on from a policy whose positions are in another unit."""
    before = earlier.facts.units if earlier and earlier.facts else UNKNOWN
    if earlier is None or UNKNOWN in (before, facts.units) or before == facts.units:
        return
    raise UserError(
        f"{earlier.folder} was trained on positions in {before}, but {facts.dataset} is in "
        f"{facts.units}: train without --init-from and --resume, or on a dataset of that unit"
    )
