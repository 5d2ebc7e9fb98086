"""verl's own FSDP engine on a CPU: its code, a plain model, and batches as its trainer prepares them."""

import functools
from types import SimpleNamespace

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional as verl_F
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

SWITCHES = (
    "actor_rollout_ref.model.external_lib=steer_core.integrations.verl",
    "actor_rollout_ref.actor.policy_loss.loss_mode=steer",
    "actor_rollout_ref.actor.calculate_entropy=True",
)
SECTION = "actor_rollout_ref.actor.policy_loss"
VOCABULARY, PROMPT, LENGTH = 17, 3, 12


def verl_config(*overrides: str):
    """verl's whole configuration, composed as its command line does."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2", *overrides])


def actor_config(*overrides: str, **settings):
    """verl's ActorConfig, as a worker builds it; `settings` go below policy_loss.steer. (Composing anew is slow.)"""
    target = [f"{SECTION}._target_=steer_core.integrations.verl.SteerPolicyLossConfig"] * bool(settings)
    values = [f"{SECTION}.steer.{key}={value}" for key, value in settings.items()]
    config = OmegaConf.merge(composed(), OmegaConf.from_dotlist([*overrides, *target, *values]))
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


@functools.cache
def composed():
    """verl's defaults, open to further keys."""
    config = verl_config()
    OmegaConf.set_struct(config, False)
    return config


def on_cpu(monkeypatch, rank: int, ranks: int, store: str) -> None:
    """Lets the engine run here: a process group, and the CPU where it asks for an accelerator."""
    monkeypatch.setattr(transformer_impl, "get_device_id", lambda: "cpu")
    monkeypatch.setattr(transformer_impl, "get_device_name", lambda: "cpu")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)


class Engine(transformer_impl.FSDPEngineWithLMHead):
    """verl's FSDP engine around a small model that is not sharded; its SGD takes steps of size 0.1."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.5, **sizes)
        self.module = Qwen2ForCausalLM(config).to(dtype).train()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.optimizer_config = SimpleNamespace(clip_grad=1e9)
        self.engine_config = SimpleNamespace(
            entropy_checkpointing=False,
            entropy_from_logits_with_chunking=False,
            use_no_sync_for_gradient_accumulation=False,
        )
        self.ulysses_device_mesh, self.ulysses_sequence_parallel_size, self.use_ulysses_sp = None, 1, False
        self.pad_to_length, self._qat_enabled, self.scaler = False, False, None
        self._autocast_dtype = torch.float32
        self.compute_entropy_from_logits = verl_F.entropy_from_logits

    def train(self, batch: TensorDict, config, loss=ppo_loss) -> dict:
        """verl's train_batch with the loss that its worker sets."""
        return self.train_batch(batch.clone(), functools.partial(loss, config=config))

    def gradients(self) -> list[torch.Tensor]:
        """The gradients of the last step."""
        return [parameter.grad.clone() for parameter in self.module.parameters()]


def batch(
    seed: int = 0, rows: int = 4, micro: int = 2, entropy: bool = True, drift: float = 0.3, **extra
) -> TensorDict:
    """Ragged prompts and responses as the trainer hands them to `update_actor`, old log-probs off the policy's."""
    source = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, VOCABULARY, (rows, PROMPT), generator=source)
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=source)
    masks = pad_sequence([torch.ones(int(n), dtype=torch.long) for n in lengths], batch_first=True)
    masks = torch.nn.functional.pad(masks, (0, LENGTH - masks.shape[1]))
    responses = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=source) * masks
    attention = torch.cat([torch.ones_like(prompts), masks], -1)
    attention[0, 0] = 0  # a shorter prompt
    data = TensorDict(
        {
            "prompts": prompts,
            "responses": responses,
            "input_ids": torch.cat([prompts, responses], -1),
            "attention_mask": attention,
            "position_ids": (attention.cumsum(-1) - 1).clamp_min(0),
            "response_mask": masks,
            "advantages": torch.randn(rows, LENGTH, generator=source),
            "old_log_probs": -2.8 + drift * torch.randn(rows, LENGTH, generator=source),
            **extra,
        },
        batch_size=rows,
    )
    data = left_right_2_no_padding(data)
    tu.assign_non_tensor(
        data,
        calculate_entropy=entropy,
        global_batch_size=rows * (dist.get_world_size() if dist.is_initialized() else 1),
        temperature=1.0,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro,
        use_remove_padding=False,
        use_fused_kernels=False,
    )
    return data
