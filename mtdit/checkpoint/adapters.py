"""LoRA and other adapters of the package `peft`: recognised, and refused with how to merge them.

An adapter holds what was trained beside the frozen weights of another policy. Merging needs that
policy and `peft`, so it is done once, before the export.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from mtdit.checkpoint.names import ADAPTER
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json

_MERGE = (
    "from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy as P; "
    "from peft import PeftModel as A; "
    "A.from_pretrained(P.from_pretrained({base!r}), {adapter!r}).merge_and_unload()"
    ".save_pretrained({merged!r})"
)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of `peft`, not a whole policy."""
    return (folder / ADAPTER).is_file()


def refusal(folder: Path) -> UserError:
    """The error for an adapter: what it is, and the lines that merge it."""
    raw = read_json(folder / ADAPTER)
    known = raw if isinstance(raw, dict) else {}
    base = known.get("base_model_name_or_path")
    kind = str(known.get("peft_type") or "PEFT")[:20]
    where = repr(base) if isinstance(base, str) and base else "an unnamed policy, BASE below"
    return UserError(
        f"{folder} is an adapter ({kind}) for {where}, not a whole policy: merge it first. "
        f"Where LeRobot and peft are installed (`pip install peft`), type "
        f"`{merge_line(folder, base if isinstance(base, str) and base else 'BASE')}`, "
        f"then use {merged_place(folder)}"
    )


def merged_place(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-merged")


def merge_line(folder: Path, base: str) -> str:
    """The shell line that writes the merged policy beside the adapter, with its processors."""
    merged = merged_place(folder)
    program = _MERGE.format(base=base, adapter=str(folder), merged=str(merged))
    return f"python -c {quote(program)} && cp {quote(str(folder))}/policy_* {quote(str(merged))}"
