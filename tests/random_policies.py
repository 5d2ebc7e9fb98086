"""Small random models of other architectures, for tests of what samples and scores."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steer_core.policy.model import Policy
from steer_core.policy.tokenizer import character_tokenizer


def random_policy(kind: str, **changed) -> Policy:
    """A small random model of an architecture, with queries in groups that share keys."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer("0123456789+-*/()=, ")
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        | changed,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model, tokenizer)
