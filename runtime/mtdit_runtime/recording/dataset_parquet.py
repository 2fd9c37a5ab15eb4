"""The Parquet files of a LeRobotDataset as numpy columns, however their writer stored them.

pandas, polars, Arrow and LeRobot itself write the same vectors as lists, large lists or lists of
fixed size, in half, single or double precision. Only what is in the columns is decided here; what
they mean is decided in `dataset_reader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_runtime.text import first_line

EPISODES, DATA = "meta/episodes", "data"  # folders of tables
MAGIC = b"PAR1"  # the first and the last bytes of a whole Parquet file
LFS = b"version https://git-lfs"
NUMBERS = "biuf"  # numpy's kinds of numbers


def table_files(root: Path, folder: str, kind: str = "parquet") -> list[Path]:
    """The files of a folder of the dataset, in the order of their names. As LeRobot, whatever the
    names are; hidden files are no part of it (macOS leaves "._" files beside those it copies).
    """
    files = (root / folder).glob(f"*/*.{kind}")
    return sorted(file for file in files if not file.name.startswith("."))


def is_unfinished(file: Path) -> bool:
    """Whether a Parquet file was begun and never closed, so that it has no footer.

    A killed program leaves it empty or cut off, a power failure may leave zeros.
    """
    with file.open("rb") as opened:
        head = opened.read(len(MAGIC))
        opened.seek(max(0, file.stat().st_size - len(MAGIC)))
        tail = opened.read()
    begun = MAGIC.startswith(head) or not any(head)
    return begun and (tail != MAGIC or file.stat().st_size <= len(MAGIC))


def read_parquet(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> Any:
    """The columns of a file whose names are `wanted`, as a pyarrow Table. UserError: damaged."""
    pq = import_parquet()
    import pyarrow as pa

    try:
        with pq.ParquetFile(file) as opened:
            names = [name for name in opened.schema_arrow.names if wanted(name)]
            return opened.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read {_why(file, error)}") from None


def _why(file: Path, error: Exception) -> str:
    """The reason in parentheses, and what to do."""
    with file.open("rb") as opened:
        if opened.read(len(LFS)) == LFS:
            return f"(it is a Git LFS pointer): run `git lfs pull` in {file.parent}"
    if is_unfinished(file):
        return "(it has no footer: its writer was interrupted); copy the dataset again"
    return f"({first_line(error, 120)}); copy the dataset again"


def need_columns(file: Path, there: Collection[str], names: Sequence[str]) -> None:
    """UserError when a file lacks a column. there: those that it has."""
    absent = [name for name in names if name not in there]
    if absent:
        raise UserError(
            f"{file} has no column {absent[0]!r}, so the dataset does not match its "
            "meta/info.json; copy the dataset again"
        )


def to_numpy(file: Path, table: Any, name: str) -> NDArray[Any]:
    """A column of numbers as (N,), a column of lists as (N, D).

    UserError: values are missing, lengths differ, or it holds something else than numbers.
    """
    import pyarrow.compute as pc

    column = _decoded(table.column(name))
    if column.null_count:
        raise UserError(
            f"{file}: {column.null_count} values are missing in column {name!r}; "
            "copy the dataset again"
        )
    shape = [len(column)]
    while _is_list(column.type):
        lengths = np.unique(pc.list_value_length(column).to_numpy())
        if len(lengths) > 1:
            raise UserError(
                f"{file}: {name!r} has {lengths[0]} numbers in one frame and {lengths[-1]} in "
                "another; record the dataset again"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        column = pc.list_flatten(column)
    values: NDArray[Any] = column.to_numpy()
    if values.dtype.kind not in NUMBERS:
        raise UserError(
            f"{file}: column {name!r} holds {column.type}, but mtdit needs numbers; "
            "copy the dataset again"
        )
    return values.reshape(shape[0], math.prod(shape[1:])) if len(shape) > 1 else values


def whole_numbers(file: Path, table: Any, name: str) -> NDArray[np.int64]:
    """A column of whole numbers, (N,); pandas may store them as floats. UserError: others."""
    values = to_numpy(file, table, name).reshape(-1)
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if len(values) != len(table) or not np.array_equal(numbers, values):
        raise UserError(
            f"{file}: column {name!r} must hold one whole number per row; copy the dataset again"
        )
    return numbers


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _decoded(column: Any) -> Any:
    """The column without dictionary encoding."""
    import pyarrow as pa

    is_encoded = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_encoded else column


def import_parquet() -> Any:
    """pyarrow.parquet. Raises the UserError that installs it."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow", "datasets need pyarrow") from error
    return pq
