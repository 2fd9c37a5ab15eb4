"""What a person should know about the words of a run: whether the policy can tell them from those
of its other tasks. CLIP reads a limited number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import TOKENIZER
from mtdit_runtime.policy.tokens import Tokens, load_tokens
from mtdit_runtime.text import printable

SHOWN = 60  # characters of an instruction in a line


def task_notes(bundle: Bundle, task: str) -> list[str]:
    """Lines about `task`, which the policy may have been trained on or not. UserError when it is
    new and the bundle's tokenizer cannot be read.
    """
    if task in bundle.manifest.tasks:
        return list(_of_trained(bundle, task))
    tokens = load_tokens(bundle.path(TOKENIZER), _length(bundle))
    return list(_of_new(tokens, task, bundle.manifest.tasks))


def _length(bundle: Bundle) -> int:
    return int(bundle.manifest.graphs["text"].inputs[0].shape[-1])


def _of_trained(bundle: Bundle, task: str) -> Iterator[str]:
    features: Mapping[str, np.ndarray] = bundle.task_features
    for other in bundle.manifest.tasks:
        if other != task and np.array_equal(features[other], features[task]):
            yield (
                f"the policy cannot tell {_short(task)} from {_short(other)}: in training both "
                f"were the same {_length(bundle)} tokens, all that CLIP reads"
            )
            return


def _of_new(tokens: Tokens, task: str, trained: tuple[str, ...]) -> Iterator[str]:
    ids, unread = tokens(task), tokens.unread(task)
    if unread:
        yield (
            f"the task {_short(task)} is longer than the {tokens.length} tokens that CLIP reads: "
            f"{printable(unread, SHOWN)!r} is not read; say first what matters, or shorten it"
        )
    for other in trained:
        if np.array_equal(tokens(other), ids):
            yield (
                f"the policy cannot tell {_short(task)} from the trained task {_short(other)}: "
                f"both are the same {tokens.length} tokens, all that CLIP reads"
            )
            return


def _short(task: str) -> str:
    return repr(printable(task, SHOWN))
