"""Multitask DiT: CLIP encoders and a diffusion transformer over action chunks."""
