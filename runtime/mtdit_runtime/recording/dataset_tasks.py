"""Which words a task number means: the one place where a number becomes an instruction.

meta/tasks.parquet says it, in any order and with any numbers; pandas writes the words as a column
or as the index of the table, with or without a name. Each episode keeps its own words in
meta/episodes, and both must agree.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import TASKS
from mtdit_runtime.recording.dataset_parquet import EPISODES, read_parquet, whole_numbers


@dataclass(frozen=True)
class TaskTable:
    """The words of each task number, by number. Two numbers may have the same words."""

    path: Path
    words: Mapping[int, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions, each once, in the order of their numbers."""
        return tuple(dict.fromkeys(self.words.values()))

    def indices(self, numbers: NDArray[np.int64], episode: NDArray[np.int64]) -> NDArray[np.int64]:
        """The stored task numbers of the rows as indices into `tasks`. episode: of each row.

        UserError names a number that the table does not have.
        """
        used, back = np.unique(numbers, return_inverse=True)
        for number in used.tolist():
            if number not in self.words:
                row = int(np.argmax(numbers == number))
                raise UserError(
                    f"episode {episode[row]} uses task number {number}, but {self.path} has "
                    f"{self._known()}; copy the dataset again, or add the task to that file"
                )
        tasks = self.tasks
        dense = np.array([tasks.index(self.words[number]) for number in used.tolist()], np.int64)
        return dense[back.reshape(-1)]

    def _known(self) -> str:
        numbers = list(self.words)
        shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
        return f"the numbers {shown}" if numbers else "no task"


def read_tasks(root: Path) -> TaskTable:
    """meta/tasks.parquet. UserError: missing, damaged, or a number with two meanings."""
    path = root / TASKS
    if not path.is_file():
        raise UserError(f"{path} does not exist; copy the whole dataset")
    table = read_parquet(path)
    words: dict[int, str] = {}
    for number, task in sorted(zip(_numbers(path, table), _words(path, table), strict=True)):
        if words.setdefault(number, task) != task:
            raise UserError(
                f"{path} gives task number {number} two meanings, {words[number]!r} and {task!r}; "
                "remove one of them"
            )
    return TaskTable(path, words)


def _words(path: Path, table: Any) -> list[str]:
    """The column of words: `task`, else the only column of text, however pandas called it."""
    import pyarrow as pa

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        types = pa.types
        kinds = (types.is_string, types.is_large_string, types.is_string_view)
        return any(is_kind(kind) for is_kind in kinds)

    texts = [field.name for field in table.schema if is_text(field.type)]
    names = ["task"] if "task" in texts else texts
    if len(names) != 1:
        raise UserError(
            f"{path} has no column 'task', only {', '.join(table.column_names) or 'none'}; "
            "every episode needs an instruction"
        )
    words = table.column(names[0]).to_pylist()
    if None in words:
        raise UserError(f"{path}: the task in row {words.index(None)} has no words; write them")
    return words


def _numbers(path: Path, table: Any) -> list[int]:
    """The column of numbers: `task_index`, else the index of the pandas table."""
    names = [n for n in ("task_index", "__index_level_0__") if n in table.column_names]
    if names:
        return [int(number) for number in whole_numbers(path, table, names[0])]
    pandas = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    for index in pandas.get("index_columns", []):
        if isinstance(index, dict) and index.get("kind") == "range":
            return list(range(index["start"], index["stop"], index["step"]))
    raise UserError(f"{path} has no column 'task_index'; copy the dataset again")


# -- the episodes' own words


def check_own_words(
    root: Path,
    table: TaskTable,
    numbers: Sequence[frozenset[int]],
    episodes: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Compare the table with the `tasks` of meta/episodes. numbers: the task numbers of each
    episode's rows. Returns a line about words that were changed in the table alone.

    A table that words a task anew is right: its words are nobody's else, and the episodes' words
    are nowhere in it. Every other difference means that numbers were mixed up: UserError names the
    episode and both texts.
    """
    own = [_own(episode) for episode in episodes]
    known = {_plain(task) for task in table.words.values()}
    said = {word for words in own for word in words}
    changed: dict[str, str] = {}  # the words of the episodes -> those of the table
    for episode, used, words in zip(episodes, numbers, own, strict=True):
        meant = {_plain(table.words[number]) for number in used}
        if not words or meant <= words:
            continue
        new, old = sorted(meant - words), sorted(words - meant)
        is_reworded = len(new) == len(old) and not (set(old) & known or set(new) & said)
        pairs = dict(zip(old, new, strict=False))
        if not is_reworded or any(changed.setdefault(o, n) != n for o, n in pairs.items()):
            raise UserError(_disagreement(root, table, episode, used, words))
    if len(set(changed.values())) < len(changed):
        raise UserError(
            f"{table.path} has one task, {next(iter(changed.values()))!r}, for what the episodes "
            f"in {root / EPISODES} call {' and '.join(map(repr, changed))}; correct one of them"
        )
    return [
        f"{TASKS} calls {new!r} what the episodes call {old!r}: the words of {TASKS} are used"
        for old, new in changed.items()
    ]


def _own(episode: Mapping[str, Any]) -> set[str]:
    """An episode's own words; older writers keep one text instead of a list, converters none."""
    tasks = episode.get("tasks")
    words = [tasks] if isinstance(tasks, str) else tasks if isinstance(tasks, list) else []
    return {_plain(word) for word in words if isinstance(word, str)}


def _plain(words: str) -> str:
    """Words without what no reader sees: spaces around them, and the form of accented letters."""
    return unicodedata.normalize("NFC", words).strip()


def _disagreement(
    root: Path,
    table: TaskTable,
    episode: Mapping[str, Any],
    used: frozenset[int],
    words: set[str],
) -> str:
    meant = ", ".join(f"{number} ({table.words[number]!r})" for number in sorted(used))
    return (
        f"{root}: the rows of episode {episode['episode_index']} have task number {meant} in "
        f"{TASKS}, but the episode itself says {', '.join(map(repr, sorted(words)))}; "
        f"correct the numbers in {TASKS}"
    )
