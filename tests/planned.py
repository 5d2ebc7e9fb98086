"""The configuration and the model that `steer plan` is tested on: a rollout of 512 prompts by the 7B model."""

from steer_core.config.config import Config, load_config
from steer_core.planner.shapes import known_shapes

SEVEN = known_shapes()["Qwen/Qwen2.5-7B"]
P = SEVEN.parameters
BF16 = ("engine.name=deepspeed", "model.dtype=bfloat16", "model.device=cuda", "train.probe_sequences=0")
BIG = (*BF16, "rollout.prompts=512", "optimizer.mini_batch_prompts=32", "rollout.max_new_tokens=3072")


def configured(*overrides: str) -> Config:
    return load_config(None, [*BIG, *overrides])
