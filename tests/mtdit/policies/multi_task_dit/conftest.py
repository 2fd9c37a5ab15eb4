"""A CLIP smaller than the tiny one, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip

TOWERS = ClipShape(
    VisionShape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    ),
    TextShape(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """There are many policies around it."""
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip-smallest", TOWERS)
