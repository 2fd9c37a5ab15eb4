"""A compiled policy computes what the policy computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtdit.training.loop import compile_in_place
from mtdit.training.run import friendly_torch_errors
from mtdit_robots.errors import UserError


# torch's own tracer looks at .grad of what it traces, and warns of that itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_it_computes_the_same(clip_folder: Path) -> None:
    """Traced forward and backward as --compile has them; inductor's code for them takes minutes to
    make on a CPU.
    """
    from lerobot_oracle import batches, lerobot_policy, our_policy

    policy = our_policy(lerobot_policy(clip_folder, 2, num_layers=1))
    _, batch = batches(policy, clip_folder)
    batch = replace(
        batch, **dict(zip(("noise", "time"), policy.objective.draw(batch.actions), strict=True))
    )
    names = list(policy.state_dict())

    def computed() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        loss = policy.loss(batch)
        loss.backward()
        return {
            "loss": loss.detach(),
            **{n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None},
        }

    eager = computed()
    compile_in_place(policy, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    compiled = computed()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, (
        "one of the vision tower, one of the denoiser"
    )
    assert compiled.keys() == eager.keys()
    worst = max((float((compiled[k] - v).abs().max()), k) for k, v in eager.items())
    assert worst[0] < 1e-6, worst
    assert list(policy.state_dict()) == names


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiler_that_fails_is_one_line(clip_folder: Path) -> None:
    from lerobot_oracle import batches, lerobot_policy, our_policy

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise RuntimeError("g++ not found\nand much more")

    policy = our_policy(lerobot_policy(clip_folder, 0, num_layers=1))
    _, batch = batches(policy, clip_folder)
    compile_in_place(policy, backend=broken)
    with (
        pytest.raises(UserError, match=r"g\+\+ not found.*train without --compile"),
        friendly_torch_errors(),
    ):
        policy.loss(batch)
