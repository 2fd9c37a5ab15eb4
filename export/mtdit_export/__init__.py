"""Checkpoint to bundle. `fold`, `trace` and `verify` need torch; `build` does not and also runs on the robot computer."""
