"""`steer plan`'s forward passes: their layout, what they read, and the memory they need, by hand or by the code."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planned import SEVEN, configured
from transformers import Qwen2Config, Qwen2ForCausalLM

from steer_core.config.config import load_config
from steer_core.formulas import linear_stats, token_stats
from steer_core.formulas.linear_stats import linear_token_stats
from steer_core.planner import passes
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.memory import memory
from steer_core.planner.passes import MicroBatch
from steer_core.planner.shapes import Shape
from steer_core.policy.head import SHARE_OF_MEMORY
from steer_core.policy.micro_batches import forward_passes
from steer_core.policy.score import states, tokens_read
from steer_core.policy.sequences import Sequences
from steer_core.training.scoring import packs

SMALL = Shape("small", 2, 64, 4, 2, 16, 128, 1000, 512, 1, 1)
V, D = SEVEN.vocabulary, SEVEN.hidden
ROWS, COLUMNS = linear_stats.BLOCKS["cuda"]
PADDED = "optimizer.shared_prompts=none"
PACKED = ("optimizer.micro_batch_tokens=4096", "optimizer.packing=packed")
FLASH = "model.attention=flash_attention_2"


# what is read


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), "shared"), ((PADDED,), "padded"), (PACKED, "packed"), (("optimizer.micro_batch_tokens=4096",), "shared"),
     (("optimizer.micro_batch_tokens=4096", FLASH), "packed"), ((FLASH,), "shared"),
     (("optimizer.micro_batch_tokens=4096", FLASH, "optimizer.packing=none"), "shared"),
     (("optimizer.packing=packed",), "shared"), (("engine.zero_stage=3",), "padded"),
     (("engine.zero_stage=2",), "shared"), (("engine.zero_stage=3", *PACKED), "packed"),
     (("optimizer.micro_batch_tokens=4096", PADDED), "padded")],
)  # fmt: skip
def test_the_layout_is_the_one_that_a_run_chooses_for_a_plain_transformer(overrides, expected):
    config = configured(*overrides)
    assert passes.layout(config) == expected

    class Policy:
        class model:
            class config:
                _attn_implementation = config.model.attention

    assert packs(Policy, config.optimizer) == (expected == "packed")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(("optimizer.micro_batch_sequences=4",), (24 + 4 * 3071, 4, 1, 4 * 3072)),
     (("optimizer.micro_batch_sequences=16",), (2 * 24 + 16 * 3071, 16, 2, 16 * 3072)),
     (("optimizer.micro_batch_sequences=12",), (2 * 24 + 12 * 3071, 12, 2, 12 * 3072)),
     (("optimizer.micro_batch_sequences=9999",), (32 * 24 + 256 * 3071, 256, 32, 256 * 3072)),
     (("optimizer.micro_batch_sequences=5", "optimizer.mini_batch_prompts=1"), (24 + 5 * 3071, 5, 1, 5 * 3072)),
     (("optimizer.micro_batch_tokens=10000",), (10000, 3, 2, 10000)),
     (("optimizer.micro_batch_tokens=5",), (3096, 1, 1, 3072 + 24)),
     (("optimizer.micro_batch_tokens=9999999",), (32 * 24 + 256 * 3071, 256, 32, 256 * 3072))],
)  # fmt: skip
def test_a_micro_batch_is_full_of_long_sequences_and_reads_a_prompt_once(overrides, expected):
    assert passes.micro_batch(configured(*overrides), SEVEN) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((PADDED, "optimizer.micro_batch_sequences=4"), (4 * 3096, 4, 4, 4 * 3072)),
     ((PADDED, "optimizer.micro_batch_sequences=9999"), (256 * 3096, 256, 256, 256 * 3072)),
     ((PADDED, "optimizer.micro_batch_tokens=10000"), (10000, 3, 3, 10000)),
     ((*PACKED, "optimizer.micro_batch_tokens=9999999"), (256 * 3096, 256, 256, 256 * 3072))],
)  # fmt: skip
def test_padded_and_packed_read_a_prompt_for_every_response(overrides, expected):
    assert passes.micro_batch(configured(*overrides), SEVEN) == expected


def test_sequences_are_no_longer_than_the_models_positions():
    short = replace(SEVEN, positions=1000)
    assert passes.micro_batch(configured("optimizer.micro_batch_sequences=2", PADDED), short) == (2000, 2, 2, 2000)
    assert passes.micro_batch(configured("optimizer.micro_batch_sequences=2"), short) == (2 * 999, 2, 1, 2000)


def sequences(prompts, group, prompt, response):
    ids = torch.arange(1, prompts + 1)[:, None].expand(-1, prompt).repeat_interleave(group, 0)
    answers = torch.ones(prompts * group, response, dtype=torch.long)
    return Sequences(ids, torch.ones_like(ids), answers, torch.ones_like(answers, dtype=torch.bool))


@given(prompts=st.integers(1, 5), group=st.integers(1, 6), size=st.integers(1, 14))
def test_prompts_are_read_as_often_as_the_code_reads_them(prompts, group, size):
    """Of passes by number of sequences: all tokens that they read, and the most of one."""
    whole = sequences(prompts, group, 7, 4)
    parts = forward_passes(range(prompts * group), whole, size, None, "shared")
    read = [tokens_read(whole.rows(rows), "shared")[0] - 3 * len(rows) for rows in parts]
    assert sum(read) == 7 * passes.prompts_read(prompts, group, size)
    rows = min(size, prompts * group)
    assert max(read) <= 7 * min(passes.most_prompts(rows, group), prompts)
    if prompts >= size:  # enough passes for every offset
        assert max(read) == 7 * passes.most_prompts(rows, group)


# activations


def test_a_layer_keeps_what_is_counted_by_hand():
    batch, padded = MicroBatch(10, 2, 2, 8), configured(PADDED)
    norms, attention, mlp = 2 * (64 * 4 + 2 * 64 * 2), 4 * 64 * 2, 4 * 128 * 2
    assert passes.layer_bytes(padded, SMALL, batch) == 10 * (norms + attention + mlp + 4 * 4)
    wide = configured(PADDED, "model.dtype=float32")
    assert passes.layer_bytes(wide, SMALL, batch) == 10 * (2 * 3 * 64 * 4 + 4 * 64 * 4 + 4 * 128 * 4 + 4 * 4)


def kept_by_a_layer(layout, dtype, heads):
    """Bytes that one more layer of a real model keeps for the backward pass, and its shape; one response is padded."""
    found, (prompts, group, prompt, response) = [], (2, 4, 24, 41)
    whole = sequences(prompts, group, prompt, response)
    if layout == "padded":
        whole.prompt_mask_BP[0, 0] = 0
    for layers in (1, 2):
        config = Qwen2Config(
            vocab_size=50, hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=heads,
            num_hidden_layers=layers, max_position_embeddings=65,
        )  # fmt: skip
        model, held = Qwen2ForCausalLM._from_config(config, dtype=dtype).eval(), {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor, held=held, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states(model, whole, layout)
        found.append(sum(storage.nbytes() for storage in held.values()))
    shape = Shape("real", 1, 256, 4, heads, 64, 512, 50, 65, 0, 1)
    return found[1] - found[0], shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_a_layer_keeps_what_a_real_models_does(layout, dtype, heads):
    measured, shape = kept_by_a_layer(layout, getattr(torch, dtype), heads)
    config = configured(
        f"model.dtype={dtype}", f"optimizer.shared_prompts={'auto' if layout == 'shared' else 'none'}",
        "optimizer.micro_batch_sequences=8", "rollout.responses=4", "rollout.max_new_tokens=41",
    )  # fmt: skip
    batch = passes.micro_batch(config, shape)
    assert batch.tokens == (2 * 24 + 8 * 40 if layout == "shared" else 8 * 65)
    mask = passes.mask_pairs(config, shape, batch) * (4 if dtype == "float32" else 2)
    assert passes.layer_bytes(config, shape, batch) + mask == pytest.approx(measured, rel=0.005)


def test_the_mask_has_an_element_for_every_pair_that_attention_is_asked_for():
    batch = MicroBatch(4096, 2, 2, 4000)
    padded, packed, shared = (configured(*more) for more in ((PADDED,), PACKED, ()))
    assert passes.mask_pairs(padded, SEVEN, batch) == 2 * 2048 * 2048
    assert passes.mask_pairs(packed, SEVEN, batch) == 4096 * 4096
    assert passes.mask_pairs(shared, SEVEN, batch) == 2 * 3071 * (24 + 3071)


def test_flash_attention_needs_no_mask_but_shared_prompts_bring_their_own():
    batch = MicroBatch(4096, 2, 2, 4000)
    assert passes.mask_pairs(configured(PADDED, FLASH), SEVEN, batch) == 0
    assert passes.mask_pairs(configured(*PACKED, FLASH), SEVEN, batch) == 0
    assert passes.mask_pairs(configured(FLASH), SEVEN, batch) == 2 * 3071 * 3095


def test_recomputing_keeps_one_layer_and_every_layers_input():
    batch, difference = MicroBatch(100, 1, 1, 80), 0
    for word, sign in (("keep", 1), ("recompute", -1)):
        config = configured(f"engine.activations={word}")
        difference += sign * passes.activations(config, SEVEN, batch)
    pairs = 3071 * 3095
    assert difference == 27 * passes.layer_bytes(configured(), SEVEN, batch) - 28 * 2 * 3584 * 100 + 27 * 2 * pairs


def test_beside_its_layers_a_pass_keeps_the_last_norm_gradients_of_the_mlp_and_the_mask():
    batch, config = MicroBatch(100, 2, 2, 80), configured(PADDED, "engine.activations=recompute")
    rest = passes.activations(config, SEVEN, batch) - passes.layer_bytes(config, SEVEN, batch)
    assert rest == 100 * (28 * 2 * 3584 + 3584 * (4 + 2 * 2) + 3 * 2 * 18944) + (1 + 2) * 100 * 50


# log-probs and entropies


def test_the_budget_is_the_setting_or_a_share_of_the_device():
    assert passes.logits_at_once(configured("engine.logits_mib=1.5"), Machine()) == 3 * 2**17
    assert passes.logits_at_once(configured(), Machine(gpu_memory=64)) == 64 * GIB / SHARE_OF_MEMORY / 4 == GIB


def test_logits_are_kept_up_to_the_budget_and_beyond_it_made_again():
    config = configured(f"engine.logits_mib={10 * V * 4 / 2**20}")
    assert [passes.made_again(config, SEVEN, rows, Machine()) for rows in (9, 10, 11)] == [False, False, True]
    kept, beyond = (passes.token_stats_bytes(config, SEVEN, rows, Machine()) for rows in (10, 11))
    block, states_of_a_row = COLUMNS * (4 + 2), D * (2 + 4 + 2)
    weight = 2 * SEVEN.head + 4 * COLUMNS * D
    assert kept == 10 * V * 4 + 10 * block + 10 * states_of_a_row + weight
    assert beyond == 11 * block + 11 * states_of_a_row + weight


def test_beyond_the_budget_memory_grows_with_rows_times_hidden_size_alone():
    few, many = (passes.token_stats_bytes(configured(), SEVEN, rows, Machine()) for rows in (20000, 30000))
    assert many - few == 10000 * D * (2 + 4 + 2)
    assert few == ROWS * COLUMNS * 6 + 20000 * D * 8 + 2 * SEVEN.head + 4 * COLUMNS * D


@pytest.mark.parametrize(
    ("dtype", "blocks", "a_row", "weight", "tiles"),
    [("bfloat16", 4 + 4, 2 + 4 + 2 + 4, 2, 2 * 4), ("float32", 4 + 4, 4 + 4, 4, 0), ("float64", 8 + 8, 8 + 8, 8, 0)],
)
def test_a_cpu_widens_what_is_narrower_than_float32(dtype, blocks, a_row, weight, tiles):
    rows, columns = linear_stats.BLOCKS["cpu"]
    engine = "engine.name=deepspeed" if dtype == "bfloat16" else "engine.name=local"
    config, kept = (load_config(None, [f"model.dtype={dtype}", engine, f"engine.logits_mib={m}"]) for m in (0.01, 1e6))
    machine = Machine(gpus=1, on_cpu=1)
    found = passes.token_stats_bytes(config, SEVEN, 5000, machine)
    assert found == rows * columns * blocks + 5000 * D * a_row + weight * SEVEN.head + tiles * columns * D
    width = 8 if dtype == "float64" else 4
    assert passes.token_stats_bytes(kept, SEVEN, 5000, machine) - found == width * 5000 * V


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [True, False])
def test_the_memory_of_the_statistics_is_what_the_code_takes(dtype, kept):
    """Blocks, tiles, states and gradients as torch's own record of allocations has them, at the peak."""
    rows, shape = 600, Shape("head", 1, 96, 1, 1, 96, 1, 4000, 1, 0, 0)
    hidden = torch.randn(rows, 96, dtype=dtype, requires_grad=True)
    weight = torch.randn(4000, 96, dtype=dtype, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as watched:
        stats = linear_token_stats(hidden, weight, labels, keep_logits=kept)
        (stats.logprob.sum() + stats.entropy.sum()).backward()
    held = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    config = configured(f"model.dtype={str(dtype)[6:]}", f"engine.logits_mib={9999 if kept else 0.01}")
    planned = passes.token_stats_bytes(config, shape, rows, Machine(gpus=1, on_cpu=1))
    assert planned - hidden.nbytes == pytest.approx(most, rel=0.05)


def test_under_zero_3_the_models_own_forward_makes_logits_in_equal_chunks():
    config = configured("engine.zero_stage=3", f"engine.logits_mib={100 * V * 4 / 2**20}")
    found = passes.token_stats_bytes(config, SEVEN, 250, Machine(gpus=2))
    elements, reduced = 84 * V, 4 * passes.STATISTICS_COPIES * token_stats.CHUNK_ELEMENTS  # 250 rows in 3 chunks
    assert found == 2 * 2 * elements + reduced + 2 * 2 * 250 * D + 2 * 2 * SEVEN.head
    few = passes.token_stats_bytes(config, SEVEN, 20, Machine(gpus=2))
    assert few == 20 * V * (2 * 2 + 4 * passes.STATISTICS_COPIES) + 2 * 2 * 20 * D + 2 * 2 * SEVEN.head
    assert passes.token_stats_bytes(config, SEVEN, 250, Machine(gpus=1)) == found


def test_one_row_at_least_is_made_at_a_time():
    config = configured("engine.zero_stage=3", "engine.logits_mib=0.01")
    more, less = (passes.token_stats_bytes(config, SEVEN, rows, Machine()) for rows in (3, 2))
    assert more - less == 2 * 2 * D


def test_a_tied_layers_gradient_waits_for_the_embeddings():
    one = ("optimizer.mini_batch_prompts=8", "rollout.responses=1", "optimizer.micro_batch_sequences=1")
    config = configured(*one, "rollout.max_new_tokens=4", "engine.activations=recompute")
    tied, untied = (memory(config, replace(SEVEN, tied=word), Machine()).moments["backward pass"] for word in (1, 0))
    gone = untied["activations"] + untied["logits statistics"]
    assert 2 * SEVEN.head < gone < 4 * SEVEN.head
    assert tied["tied gradients"] == 4 * SEVEN.head - gone
    assert "tied gradients" not in untied
    assert passes.tied_bytes(config, replace(SEVEN, tied=1), 4 * SEVEN.head + 1) == 0
