"""File and folder names of a checkpoint."""

from __future__ import annotations

CONFIG, WEIGHTS, TRAIN_CONFIG = "config.json", "model.safetensors", "train_config.json"
ADAPTER = "adapter_config.json"  # of PEFT, beside adapter_model.safetensors
STEP, OPTIMIZER = "training_step.json", "optimizer_state.safetensors"
LIVE = "live_weights.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PRETRAINED, TRAINING_STATE = "pretrained_model", "training_state"
CHECKPOINTS, LAST = "checkpoints", "last"
PRETRAINED_EMA = "pretrained_model_ema"  # LeRobot's, from 0.6.2 on
FACTS, CLIP = "mtdit.json", "clip"
