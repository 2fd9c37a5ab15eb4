"""The exact algebra that makes the exported graphs small."""
