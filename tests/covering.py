"""Few cases in place of a full product: every pair of values of two axes occurs in one of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def covering(axes: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """Cases, axis name -> value, in which every pair of values of two axes occurs, greedily few."""
    rng, names = random.Random(seed), list(axes)
    open_pairs = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in axes[a]
        for y in axes[b]
    }

    def pairs(case: dict[str, Any]) -> set[Any]:
        return set(itertools.combinations(case.items(), 2)) & open_pairs

    cases = []
    while open_pairs:
        must = dict(min(open_pairs, key=repr))
        tries = [{n: must.get(n, rng.choice(axes[n])) for n in names} for _ in range(60)]
        cases.append(max(tries, key=lambda case: len(pairs(case))))
        open_pairs -= pairs(cases[-1])
    return cases


def assert_covered(axes: Mapping[str, Sequence[Any]], cases: Sequence[Mapping[str, Any]]) -> None:
    for a, b in itertools.combinations(axes, 2):
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(axes[a], axes[b]))
