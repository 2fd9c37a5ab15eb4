"""Places in the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "calibration" / "example_so101.json"
DEMO = ROOT / "tests" / "data" / "demo.mtdit"
