"""int8 towers: how far rounding may go, what smoothing saves, and what the graphs hold."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file, save_file
from torch import Tensor
from workshop import STEPS

from mtdit.checkpoint.names import WEIGHTS
from mtdit_export.export import example_inputs, export
from mtdit_export.fold.clip import ClipBlock
from mtdit_export.fold.fold import Folded, fold
from mtdit_export.fold.frames import FoldedVision
from mtdit_export.fold.layers import Dense, Norm
from mtdit_export.options import ExportOptions
from mtdit_export.quantize import Int8Dense, input_peaks, normed_products, quantize, smooth
from mtdit_export.trace import trace
from mtdit_export.trt_compat import problems
from mtdit_robots.errors import ExportError, UserError

LOUD = 64.0


@pytest.fixture
def folded(workshop: Any) -> Folded:
    config = workshop.config()
    return fold(workshop.policy(config), workshop.scaling(config))


def tower(folded: Folded) -> FoldedVision:
    assert folded.vision is not None
    return folded.vision


def samples(count: int = 3, seed: int = 0) -> list[list[Tensor]]:
    """Frames (60, 80, 3) of two cameras."""
    numbers = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(0, 256, (60, 80, 3), generator=numbers).byte() for _ in range(2)]
        for _ in range(count)
    ]


def pairs(module: torch.nn.Module) -> list[tuple[Norm, list[Dense]]]:
    return [
        pair
        for block in module.modules()
        if isinstance(block, ClipBlock)
        for pair in normed_products(block)
    ]


def make_loud(module: torch.nn.Module) -> None:
    """The same function with three loud channels behind every layer norm, as trained CLIPs have
    them.
    """
    for norm, readers in pairs(module):
        norm.weight[:3] *= LOUD
        norm.bias[:3] *= LOUD
        for reader in readers:
            reader.weight[:3] /= LOUD


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_a_product_errs_by_half_a_step_of_each_factor() -> None:
    torch.manual_seed(0)
    dense, x = Dense(torch.randn(7, 16), torch.randn(7)), torch.randn(2, 5, 16)
    small = Int8Dense(dense, x.abs().amax())
    steps = x.abs().amax() / 127, dense.weight.abs().amax(0) / 127
    bound = (x.abs() + steps[0] / 2).sum(-1, keepdim=True) * steps[1] / 2 + dense.weight.abs().sum(
        0
    ) * steps[0] / 2
    error = (small(x) - dense(x)).abs()
    assert small.weight.dtype == torch.int8
    assert error.max() > 0
    assert (error <= bound).all()


def test_an_input_beyond_its_range_is_clipped() -> None:
    small = Int8Dense(Dense(torch.eye(4), torch.zeros(4)), torch.tensor(1.0))
    got = small(torch.full((1, 1, 4), 9.0))
    torch.testing.assert_close(got, torch.ones(1, 1, 4))


def test_a_silent_product_stays_finite() -> None:
    small = Int8Dense(Dense(torch.zeros(3, 4), torch.ones(3)), torch.tensor(0.0))
    torch.testing.assert_close(small(torch.zeros(1, 2, 4)), torch.ones(1, 2, 3))


def test_smoothing_is_an_identity_and_evens_the_channels(folded: Folded) -> None:
    vision, frames = tower(folded), samples()
    make_loud(vision)
    before, peaks = [vision(*f) for f in frames], input_peaks(vision, frames)
    for norm, readers in pairs(vision):
        seen = torch.stack([peaks[r] for r in readers]).amax(0)
        assert seen[:3].amin() > 10 * seen[3:].median()
        smooth(norm, readers, peaks)
    for wanted, f in zip(before, frames, strict=True):
        torch.testing.assert_close(vision(*f), wanted, atol=1e-4, rtol=0)
    again = input_peaks(vision, frames)
    for _, readers in pairs(vision):
        for reader in readers:
            torch.testing.assert_close(again[reader], peaks[reader], rtol=1e-4, atol=1e-6)
        seen = torch.stack([again[r] for r in readers]).amax(0)
        assert seen[:3].amin() < 10 * seen[3:].median()


def test_channels_that_are_silent_or_unread_are_left_alone(folded: Folded) -> None:
    vision = tower(folded)
    norm, (reader,) = pairs(vision)[1]
    norm.weight[0] = norm.bias[0] = 0.0
    reader.weight[1] = 0.0
    before = vision(*samples(1)[0])
    quantize(vision, samples())
    after = vision(*samples(1)[0])
    assert torch.isfinite(after).all()
    assert relative_error(after, before) < 0.05


def test_loud_channels_cost_nothing(folded: Folded, workshop: Any) -> None:
    """Without smoothing they cost several times the error."""
    vision, (unseen,) = tower(folded), samples(1, seed=9)
    make_loud(vision)
    wanted = vision(*unseen)
    peaks = input_peaks(vision, samples())
    rough = tower(fold(workshop.policy(workshop.config()), workshop.scaling(workshop.config())))
    make_loud(rough)
    names = {part: name for name, part in vision.named_modules()}
    for part, peak in peaks.items():
        rough.set_submodule(names[part], Int8Dense(part, peak.amax()))  # type: ignore[arg-type]
    quantize(vision, samples())
    fine, coarse = relative_error(vision(*unseen), wanted), relative_error(rough(*unseen), wanted)
    assert 0 < fine < 0.03
    assert coarse > 3 * fine


def test_graph_computes_what_torch_does(folded: Folded, workshop: Any) -> None:
    vision, (unseen,) = tower(folded), samples(1, seed=9)
    exact = vision(*unseen)
    quantize(vision, samples())
    model = trace(vision, example_inputs("vision", folded, workshop.config()), "features")
    assert problems(model) == []
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = {i.name: f.numpy() for i, f in zip(session.get_inputs(), unseen, strict=True)}
    (got,) = session.run(None, inputs)
    wanted = vision(*unseen)
    assert relative_error(torch.from_numpy(got), wanted) < 0.2 * relative_error(
        wanted, exact
    )  # ties round either way


@pytest.mark.parametrize(("name", "blocks"), [("vision", 2), ("text", 2)])
def test_every_dense_product_is_int8(
    int8_bundle: Path, bundle: Path, name: str, blocks: int
) -> None:
    graph = onnx.load(int8_bundle / f"{name}.onnx").graph
    weights = {w.name: w for w in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    products = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in made_by]
    small = [n for n in products if made_by[n.input[1]].op_type == "DequantizeLinear"]
    assert len(small) == 4 * blocks  # q with or without k and v, out, up and down
    for node in small:
        x, w = (made_by[i] for i in node.input)
        assert made_by[x.input[0]].op_type == "QuantizeLinear"
        assert weights[w.input[0]].data_type == TensorProto.INT8
        assert list(weights[w.input[1]].dims) == [weights[w.input[0]].dims[1]]  # a scale per output
        assert list(weights[x.input[1]].dims) == []
        assert not numpy_helper.to_array(weights[x.input[2]]).any()
    assert Counter(n.op_type for n in graph.node)["QuantizeLinear"] == len(small)
    assert (int8_bundle / f"{name}.onnx").stat().st_size < (bundle / f"{name}.onnx").stat().st_size


def test_onnxruntime_multiplies_int8(int8_bundle: Path, tmp_path: Path) -> None:
    """The point of it all: no dense product is computed on float weights."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "as_run.onnx"), 4
    onnxruntime.InferenceSession(
        str(int8_bundle / "vision.onnx"), options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "as_run.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == 8
    assert kinds["DequantizeLinear"] == kinds["Gemm"] == 0


def test_denoiser_of_an_int8_bundle_is_float32(int8_bundle: Path, bundle: Path) -> None:
    ours, plain = (onnx.load(b / "denoiser.onnx").graph for b in (int8_bundle, bundle))
    assert [n.op_type for n in ours.node] == [n.op_type for n in plain.node]
    assert [w.data_type for w in ours.initializer] == [w.data_type for w in plain.initializer]


@pytest.fixture
def deaf_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """In every vision block one hidden unit is so large that int8 leaves nothing of the others;
    float32 does.
    """
    folder = tmp_path / "deaf" / "pretrained_model"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / WEIGHTS)
    for name in [n for n in weights if "vision_model" in n and n.endswith("fc1.bias")]:
        weights[name][0] = 1e4
        weights[name.replace("fc1.bias", "fc2.weight")] *= 50.0
        weights[name.replace("fc1.bias", "fc2.weight")][:, 0] = 0.0
    save_file(weights, folder / WEIGHTS)
    return folder


def test_what_int8_cannot_hold_is_refused(
    deaf_checkpoint: Path, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.mtdit"
    with pytest.raises(
        ExportError,
        match=r"int8 graphs differ .* robot: rms error .* 10% .*\(export without --int8\)",
    ):
        export(
            deaf_checkpoint, out, ExportOptions(steps=STEPS, dataset=recording, precision="int8")
        )
    assert [p.name for p in tmp_path.iterdir()] == ["deaf"]


def test_calibration_needs_frames(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match="--int8 needs recorded frames to calibrate the vision tower with: add --data",
    ):
        export(checkpoint, tmp_path / "p.mtdit", ExportOptions(precision="int8"))


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="precision must be one of fp32, fp16, int8, got 'int4'"):
        ExportOptions(precision="int4")  # type: ignore[arg-type]


def test_policy_without_cameras_needs_no_frames(workshop: Any, tmp_path: Path) -> None:
    blind, lines = (
        workshop.checkpoint(tmp_path / "blind", workshop.config(cameras=(), num_layers=1)),
        list[str](),
    )
    report = export(
        blind, tmp_path / "p.mtdit", ExportOptions(steps=1, precision="int8"), say=lines.append
    )
    assert report.precision == "int8"
    assert lines[2].startswith("calibrated int8 on 0 frames per camera and 2 tasks")
    assert np.isfinite(report.stages["text robot"]["max_error"])
    assert report.stages["text robot"]["rms_error"] > 0
