"""`import mtdit`: cheap, typed, complete, and plain about what is missing."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import traceback
import zipfile
from importlib import import_module
from pathlib import Path

import mypy.api
import pytest
from repository import ROOT

import mtdit

HEAVY = ("numpy", "torch", "rich", "typer", "onnxruntime", "mujoco", "PIL", "pyarrow")
NEEDS_TRAIN = {"train", "open_checkpoint", "Checkpoint"}
NEEDS_EXPORT = {"export", "ExportReport", "verify_checkpoint"}
PACKAGES = ("mtdit", "export/mtdit_export", "runtime/mtdit_runtime", "robots/mtdit_robots")


def run_fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_loads_nothing_but_itself() -> None:
    loaded = run_fresh(
        "import sys; before = set(sys.modules); import mtdit; print(*set(sys.modules) - before)"
    ).split()
    assert [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names] == [
        "mtdit"
    ]


def test_names_for_the_robot_computer_need_no_torch() -> None:
    """Where no extra is installed, every name still comes, but for those that train or export."""
    blocked = ("torch", "lerobot", "onnxruntime", "onnx", "mujoco", "PIL", "pyarrow", "av")
    refused = run_fresh(f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import mtdit
for name in mtdit.__all__:
    try:
        getattr(mtdit, name)
    except mtdit.UserError as error:
        print(name, error, sep="|")
""").splitlines()
    assert {line.partition("|")[0] for line in refused} == NEEDS_TRAIN | NEEDS_EXPORT
    for line in refused:
        name, _, message = line.partition("|")
        assert re.match(rf"mtdit\.{name} needs (torch|onnx), which is not installed: pip ", message)
        assert ("[train]" in message) == (name in NEEDS_TRAIN)


@pytest.mark.parametrize("name", mtdit.__all__)
def test_every_name_is_there_and_explains_itself(name: str) -> None:
    doc = getattr(mtdit, name).__doc__
    assert doc is not None
    assert not doc.startswith(f"{name}("), "the docstring that dataclass makes from the fields"


def test_no_name_is_taken_by_a_submodule() -> None:
    """Importing `mtdit.x` sets the attribute x of mtdit, which would replace an export x."""
    submodules = {module.name for module in pkgutil.iter_modules(mtdit.__path__)}
    assert not submodules & set(mtdit.__all__)


def test_type_checkers_read_what_python_gets() -> None:
    tree = ast.parse(Path(str(mtdit.__file__)).read_text())
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in blocks[0] if isinstance(node, ast.ImportFrom)]
    typed = {a.asname or a.name: (node.module, a.name) for node in imports for a in node.names}
    assert sorted(typed) == sorted(mtdit.__all__)
    for name, (module, attribute) in typed.items():
        assert getattr(import_module(str(module)), attribute) is getattr(mtdit, name)


def test_dir_lists_the_names() -> None:
    assert set(mtdit.__all__) <= set(dir(mtdit))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'laod': did you mean 'load'\?"):
        mtdit.laod  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError) as said:
        mtdit.evaluat  # type: ignore[attr-defined]  # noqa: B018
    assert "".join(traceback.format_exception_only(said.value)).count("'evaluate'") == 1
    with pytest.raises(AttributeError, match=r"`dir\(mtdit\)` lists"):
        mtdit.qqqq  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from mtdit import laod  # type: ignore[attr-defined]  # noqa: F401


SNIPPET = """
import mtdit
from pathlib import Path

policy = mtdit.load("policy.mtdit", backend="onnx")
reveal_type(policy.chunk())
with mtdit.Twin(clock="lockstep") as twin:
    report = mtdit.run("policy.mtdit", twin.robot(), "open the drawer", mtdit.RunOptions(seed=1))
    reveal_type(report)
    rate = mtdit.evaluate(policy, twin, "open the drawer", mtdit.EvalOptions(episodes=3))
    reveal_type(rate.low)
run = mtdit.train(mtdit.TrainConfig("my-dataset", Path("outputs/train"), preset="tiny"))
reveal_type(mtdit.export(run, "policy.mtdit", mtdit.ExportOptions(precision="fp16")))
reveal_type(mtdit.verify("policy.mtdit").ok)
mtdit.export(run, "policy.mtdit", mtdit.ExportOptions(precision="fp8"))  # line 15
mtdit.laod("policy.mtdit")  # line 16
"""
REVEALED = (
    "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]",
    "mtdit_runtime.control.report.RunReport",
    "float",
    "mtdit_export.export.ExportReport",
    "bool",
)
# torch's types play no part here, and reading them would take a minute.
MYPY = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-torch.*,mujoco.*,lerobot.*,transformers.*,onnx.*,onnxscript.*,onnxruntime.*,safetensors.*]
follow_imports = skip
[mypy-accelerate.*,serial.*,PIL.*,pyarrow.*,typer.*,rich.*,tensorrt.*,tokenizers.*,datasets.*]
follow_imports = skip
"""


def test_the_calls_of_a_user_are_type_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYPYPATH", ":".join(str((ROOT / p).parent) for p in PACKAGES))
    (tmp_path / "mypy.ini").write_text(MYPY)
    (tmp_path / "user.py").write_text(SNIPPET)
    cache = ROOT / ".mypy_cache/front_door"  # the second run takes a second
    arguments = ["--config-file", tmp_path / "mypy.ini", "--cache-dir", cache, tmp_path / "user.py"]
    told, problems, _ = mypy.api.run(list(map(str, arguments)))
    assert problems == ""
    lines = told.splitlines()
    notes = [line for line in lines if "Revealed type" in line]
    seen = [line.partition('"')[2].rstrip('"').removeprefix("builtins.") for line in notes]
    assert seen == list(REVEALED)
    errors = [line.partition("user.py:")[2] for line in lines if "error:" in line]
    assert [error.partition(":")[0] for error in errors] == ["15", "16"], told


def test_the_wheel_tells_type_checkers_that_it_is_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"{Path(package).name}/py.typed" for package in PACKAGES} <= set(names)
