"""`steer plan`'s memory: each formula by hand, by a real model, or by what it must do when one setting changes."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import SEVEN, P, configured
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.planner import memory as planner
from steer_core.planner import states as planner_states
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.memory import fewest_gpus, memory
from steer_core.planner.shapes import Shape, known_shapes, read_shape, shape_of
from steer_core.planner.states import BUCKET, LIVE, SUB_GROUP
from steer_core.policy.model import load_policy
from steer_core.rollout import local

SMALL = Shape("small", 2, 64, 4, 2, 16, 128, 1000, 512, 1, 1)


def parts(*overrides, ranks=8, moment="backward pass"):
    return memory(configured(*overrides), SEVEN, Machine(gpus=ranks)).moments[moment]


# shapes


@pytest.mark.parametrize("path", ["embedded", "smoke"])
def test_the_parameter_count_is_that_of_the_models_that_come_with_the_package(path):
    assert shape_of(path).parameters == load_policy(path).model.num_parameters()


@given(
    kind=st.sampled_from([Qwen2Config, LlamaConfig]),
    tied=st.sampled_from([False, True]),
    layers=st.integers(1, 3),
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4), (3, 1)]),
    intermediate=st.integers(8, 40),
    vocabulary=st.integers(10, 70),
)
def test_the_parameter_count_is_that_of_real_models_tied_or_not(
    tmp_path_factory, kind, tied, layers, heads, intermediate, vocabulary
):
    config = kind(
        vocab_size=vocabulary, hidden_size=8 * heads[0], intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("shape")
    config.save_pretrained(folder)
    assert read_shape(folder, "x").parameters == AutoModelForCausalLM.from_config(config).num_parameters()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("Qwen/Qwen2.5-0.5B", 494.032768), ("Qwen/Qwen2.5-Math-1.5B", 1543.714304), ("Qwen/Qwen2.5-3B", 3085.938688),
     ("Qwen/Qwen2.5-7B", 7615.616512), ("Qwen/Qwen2.5-14B", 14770.033664),
     ("meta-llama/Llama-3.2-3B-Instruct", 3212.749824)],
)  # fmt: skip
def test_the_public_models_have_their_published_sizes(name, millions):
    assert known_shapes()[name].parameters == round(millions * 1e6)


def test_a_token_of_the_7b_model_takes_57344_bytes_of_cache():
    assert SEVEN.kv_bytes(2) == 2 * 28 * 4 * 128 * 2 == 57344
    assert known_shapes()["Qwen/Qwen2.5-14B"].kv_bytes(2) == 196608


def test_a_forward_pass_is_two_operations_a_matrix_parameter_and_attention_grows_with_length():
    matrices = 2 * (64 * 64 + 64 * 32 + 64 * 32 + 64 * 64 + 3 * 64 * 128)
    assert SMALL.forward_flops(1, 0, 0) == 2 * matrices
    assert SMALL.forward_flops(1, 1, 0) == 2 * matrices + 2 * 1000 * 64
    assert SMALL.forward_flops(10, 0, 100) - SMALL.forward_flops(10, 0, 0) == 10 * 2 * (2 * 100 * 64)


@pytest.mark.parametrize(
    ("path", "message"),
    [("Qwen/Qwen2.5-7b", r"model.path: 'Qwen/Qwen2.5-7b' .*did you mean 'Qwen/Qwen2.5-7B'"),
     ("Qwen2.5-Math-7", r"did you mean 'Qwen2.5-Math-7B'")],
)  # fmt: skip
def test_an_unknown_model_names_the_nearest_known_one(path, message):
    with pytest.raises(SteerError, match=message):
        shape_of(path)


def test_a_model_is_known_by_its_short_name_too_and_a_folder_wins(tmp_path, monkeypatch):
    assert shape_of("Qwen2.5-7B") == shape_of("Qwen/Qwen2.5-7B") == SEVEN
    Qwen2Config(vocab_size=77).save_pretrained(tmp_path / "Qwen2.5-7B")
    monkeypatch.chdir(tmp_path)
    assert shape_of("Qwen2.5-7B").vocabulary == 77


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ('{"model_type": "gpt2"}', "'gpt2' is none that"), ('{"model_type": "qwen2"}', "no '")],
)
def test_a_folder_that_gives_no_shape_is_told(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SteerError, match=rf"model.path: .*{message}"):
        shape_of(str(tmp_path))


# memory


def test_the_machine_and_so_the_help_of_the_command_need_no_torch():
    code = "import sys, steer_core.planner.machine; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(0, 2, 2, 12), (1, 2, 4, 12 / 8), (2, 2, 4 / 8, 12 / 8), (3, 2 / 8, 4 / 8, 12 / 8)],
)
def test_each_stage_of_zero_shares_out_one_more_part(stage, weights, gradients, optimiser):
    found = parts(f"engine.zero_stage={stage}")
    assert found["weights"] == pytest.approx(weights * P)
    assert found["gradients"] == pytest.approx(gradients * P)
    assert found["optimiser"] == pytest.approx(optimiser * P)


@given(ranks=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_zero_3_on_n_gpus_holds_an_nth(ranks):
    found = parts("engine.zero_stage=3", ranks=ranks)
    assert found["weights"] * ranks == pytest.approx(2 * P)
    assert (found["gradients"] + found["optimiser"]) * ranks == pytest.approx(16 * P)


H, OWN = SEVEN.head, P / 8
"""Parameters of the largest matrix, which is larger than a bucket, and of a rank's share on 8 GPUs."""
AMONG_EIGHT = {
    # gradients in rollout, backward pass and step; buffers in the same; the step's copies
    "bfloat16 0 none": ((0, 2 * P, 2 * P), (0, 0, 0), 8 * P),
    "bfloat16 1 none": ((4 * P, 4 * P, 4 * P), (0, 4 * H, 0), 4 * OWN),
    "bfloat16 2 none": ((0, 4 * OWN, 4 * OWN), (0, 2 * BUCKET + 6 * H, 0), 8 * H),
    "bfloat16 3 none": ((4 * OWN,) * 3, (4 * BUCKET, 4 * BUCKET + 4 * H, 4 * BUCKET), 8 * OWN),
    "float32 0 none": ((0, 4 * P, 4 * P), (0, 0, 0), 4 * P),
    "float32 1 none": ((0, 4 * P, 4 * OWN), (0, 4 * BUCKET, 0), 4 * P),
    "float32 2 none": ((0, 4 * OWN, 4 * OWN), (0, 4 * BUCKET + 4 * H + 4 * OWN, 0), 8 * H),
    "float32 3 none": ((4 * OWN,) * 3, (4 * BUCKET, 4 * BUCKET + 4 * H, 4 * BUCKET), 8 * OWN),
    "bfloat16 1 optimizer": ((0, 4 * P, 4 * OWN), (2 * H, 6 * H + 4 * BUCKET, 2 * H), 4 * P + 4 * H),
    "bfloat16 2 optimizer": ((0, 4 * OWN, 4 * OWN), (2 * H, 2 * H + 2 * BUCKET + 8 * H, 2 * H), 0),
    "bfloat16 3 optimizer": ((0, 0, 0), (4 * BUCKET, 4 * BUCKET + 4 * H, 4 * BUCKET), 0),
    "float32 1 optimizer": ((0, 4 * P, 0), (4 * H, 4 * H + 4 * BUCKET, 4 * H), 4 * P + 4 * H),
    "float32 2 optimizer": ((0, 0, 0), (4 * H, 4 * H + 4 * BUCKET + 8 * H, 4 * H), 0),
}


@pytest.mark.parametrize("case", AMONG_EIGHT)
def test_gradients_and_buffers_are_those_of_deepspeeds_code(case):
    dtype, stage, offload = case.split()
    overrides = (f"model.dtype={dtype}", f"engine.zero_stage={stage}", f"engine.offload={offload}")
    found = planner_states.states(configured(*overrides), SEVEN, 8)
    gradients, buffers, copies = AMONG_EIGHT[case]
    assert [held["gradients"] for held in found.values()] == pytest.approx(gradients)
    assert [held["buffers"] for held in found.values()] == pytest.approx(buffers)
    assert found["optimiser step"]["step's copies"] == pytest.approx(copies)


S = SMALL.parameters
ALONE = {
    # buffers in the backward pass and the step's copies, on a GPU and on a CPU, of a model that fits a bucket
    "bfloat16 0": ((0, 8 * S), (0, 8 * S)),
    "bfloat16 1": ((4 * SMALL.head, 4 * S), (4 * SMALL.head, 4 * S)),
    "bfloat16 2": ((2 * BUCKET, 2 * BUCKET + 6 * S), (2 * S, 8 * S)),
    "bfloat16 3": ((4 * BUCKET, 8 * S), (4 * S, 8 * S)),
    "float32 0": ((0, 4 * S), (0, 4 * S)),
    "float32 1": ((4 * BUCKET, 4 * BUCKET), (0, 4 * S)),
    "float32 2": ((4 * BUCKET, 4 * BUCKET + 4 * S), (4 * S, 8 * S)),
    "float32 3": ((4 * BUCKET, 8 * S), (4 * S, 8 * S)),
}


@pytest.mark.parametrize("case", ALONE)
@pytest.mark.parametrize("on_cpu", [0, 1])
def test_a_model_that_fits_a_bucket_is_reduced_after_the_backward_pass(case, on_cpu):
    dtype, stage = case.split()
    config = configured(f"model.dtype={dtype}", f"engine.zero_stage={stage}")
    found = planner_states.states(config, SMALL, 1, on_cpu)
    buffers, copies = ALONE[case][on_cpu]
    assert found["backward pass"]["buffers"] == buffers
    assert found["optimiser step"]["step's copies"] == copies


def test_one_rank_flattens_no_float32_gradients_that_it_offloads():
    config = configured("model.dtype=float32", "engine.zero_stage=1", "engine.offload=optimizer")
    alone, two = (planner_states.states(config, SMALL, ranks, 1)["optimiser step"] for ranks in (1, 2))
    assert (alone["step's copies"], two["step's copies"]) == (4 * S, 8 * S)


def test_the_norm_takes_no_more_of_a_matrix_than_a_ranks_share():
    found = planner_states.states(configured("engine.zero_stage=2"), SEVEN, 64)["optimiser step"]
    assert found["step's copies"] == 8 * P / 64 < 8 * H


def test_zero_0_reduces_more_than_it_updates_where_the_optimiser_keeps_nothing():
    config = configured("engine.zero_stage=0", "optimizer.name=sgd", "optimizer.momentum=0")
    found = planner_states.states(config, SMALL, 1)["optimiser step"]
    assert found["step's copies"] == 6 * S


def test_the_local_engine_copies_all_moments_and_gives_its_gradients_up():
    found = planner_states.states(load_config(None, ["model.dtype=float64"]), SMALL, 1)
    assert [held["gradients"] for held in found.values()] == [0, 8 * S, 8 * S]
    assert found["optimiser step"]["step's copies"] == 8 * S
    assert planner_states.adam(load_config(None, ["optimizer.name=sgd"]), S) == 0


def test_zero_3_steps_through_a_billion_parameters_at_a_time():
    found = planner_states.states(configured("engine.zero_stage=3"), SEVEN, 1)["optimiser step"]
    assert found["step's copies"] == 8 * SUB_GROUP


def test_zero_3_gathers_weights_in_passes_of_the_model_alone():
    vllm, generate = (
        planner_states.states(configured("engine.zero_stage=3", f"rollout.engine={word}"), SEVEN, 8)
        for word in ("vllm", "huggingface")
    )
    assert [held["gathered weights"] for held in vllm.values()] == [0, 2 * LIVE, 0]
    assert [held["gathered weights"] for held in generate.values()] == [2 * LIVE, 2 * LIVE, 0]
    assert parts("engine.zero_stage=2")["gathered weights"] == 0
    assert planner_states.gathered(configured("engine.zero_stage=3"), SMALL, "backward pass") == 2 * S


@pytest.mark.parametrize(
    ("overrides", "bytes_a_parameter"),
    [((), 8), (("optimizer.name=sgd",), 0), (("optimizer.name=sgd", "optimizer.momentum=0.9"), 4),
     (("model.dtype=float64",), 16), (("engine.name=deepspeed", "engine.zero_stage=0"), 8),
     (("engine.name=deepspeed", "engine.zero_stage=1"), 12)],
)  # fmt: skip
def test_the_optimiser_keeps_its_moments_and_deepspeed_float32_weights_too(overrides, bytes_a_parameter):
    config = load_config(None, overrides)
    assert planner_states.optimiser(config, SMALL, 1) == bytes_a_parameter * SMALL.parameters


def test_the_local_engine_shares_nothing_out():
    alone, eight = (
        memory(load_config(None, ["optimizer.mini_batch_prompts=8"]), SEVEN, Machine(gpus=n)) for n in (1, 8)
    )
    assert alone.moments == eight.moments
    assert alone.moments["backward pass"]["weights"] == 4 * P


def test_offloading_moves_bytes_from_the_gpu_to_the_host():
    machine = Machine()
    none, some, everything = (
        memory(configured("engine.zero_stage=3", f"engine.offload={word}"), SEVEN, machine)
        for word in ("none", "optimizer", "all")
    )
    gpu = [one.moments["backward pass"] for one in (none, some, everything)]
    assert [part["optimiser"] for part in gpu] == [12 * P / 8, 0, 0]
    assert [part["gradients"] for part in gpu] == [4 * P / 8, 0, 0]
    assert [part["weights"] for part in gpu] == [2 * P / 8, 2 * P / 8, 0]
    assert "optimiser" not in none.host
    assert some.host["optimiser"] == 16 * P
    assert everything.host["weights"] == 2 * P
    assert memory(configured("engine.offload=optimizer"), SEVEN, replace(machine, nodes=2)).host["optimiser"] == 8 * P


@pytest.mark.parametrize(
    ("overrides", "gradients", "buffers", "copies"),
    [(("engine.zero_stage=1",), 0, 2 * P + 8 * 2 * H, 4 * P), (("engine.zero_stage=2",), 0, 2 * P + 8 * 2 * H, 4 * P),
     (("engine.zero_stage=3",), 4 * P, 0, 4 * P), (("optimizer.name=cpu-adam",), 0, 2 * P + 8 * 2 * H, 0),
     (("model.dtype=float32",), 4 * P, 4 * P + 8 * 4 * H, 4 * P)],
)  # fmt: skip
def test_a_host_holds_sums_and_copies_beside_the_offloaded_optimiser(overrides, gradients, buffers, copies):
    found = memory(configured("engine.offload=optimizer", *overrides), SEVEN, Machine()).host
    assert found["optimiser"] == 16 * P
    assert found.get("gradients", 0) == gradients
    assert found.get("buffers", 0) == buffers
    assert found.get("step's copies", 0) == copies


def test_vllm_takes_its_share_and_sleeps_while_the_trainer_works():
    found = memory(configured("rollout.engine=vllm", "rollout.gpu_memory=0.5"), SEVEN, Machine()).moments
    taken = {part: size for part, size in found["rollout"].items() if part.startswith("vLLM")}
    assert sum(taken.values()) == pytest.approx(40 * GIB)
    assert taken["vLLM weights"] == 2 * P
    asleep = [part for part in found["backward pass"] if part.startswith("vLLM")]
    assert asleep == ["vLLM workspace"]


def test_the_cache_holds_what_weights_and_workspace_leave_and_two_gpus_hold_more_than_twice_as_much():
    one, two = (
        planner.sampler_memory(configured("rollout.engine=vllm", f"rollout.tensor_parallel={t}"), SEVEN, Machine())[1]
        for t in (1, 2)
    )
    assert one == pytest.approx((0.4 * 80 * GIB - 2 * P - planner.WORKSPACE) / 57344)
    assert two == pytest.approx((0.4 * 80 * GIB - P - planner.WORKSPACE) / (57344 / 2))


def test_generates_cache_is_one_batch_at_full_length():
    config = configured("rollout.engine=huggingface", "rollout.batch_sequences=16")
    sampled, tokens = planner.sampler_memory(config, SEVEN, Machine())
    assert tokens == 16 * (24 + 3072)
    assert sampled == {"cache": tokens * 57344, "logits sampled": 3 * 4 * 16 * 152064}


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_the_native_cache_holds_a_prompt_once_and_every_response_at_full_length(engine):
    config = configured(f"rollout.engine={engine}", "rollout.batch_sequences=16", "rollout.responses=4")
    sampled, tokens = planner.sampler_memory(config, SEVEN, Machine())
    assert tokens == 16 * (24 + 3072)
    assert sampled["cache"] == (4 * 24 + 16 * 3072) * 57344
    assert sampled["logits sampled"] == 16 * 152064 * (2 * 2 + 3 * 8)


def test_a_native_batch_across_groups_holds_the_prompts_that_it_cuts():
    config = configured("rollout.batch_sequences=6", "rollout.responses=4")
    assert planner.sampler_memory(config, SEVEN, Machine())[0]["cache"] == (2 * 24 + 6 * 3072) * 57344
    few = configured("rollout.prompts=1", "optimizer.mini_batch_prompts=1", "rollout.batch_sequences=5")
    assert planner.sampler_memory(few, SEVEN, Machine())[0]["cache"] == (24 + 5 * 3072) * 57344


def test_native_picks_tokens_from_no_more_logits_at_a_time_than_it_does():
    config = configured("rollout.batch_sequences=512")
    found = planner.sampler_memory(config, SEVEN, Machine())[0]["logits sampled"]
    assert found == 2 * 2 * 512 * 152064 + 3 * 8 * local._PICKED_AT_ONCE


def test_auto_samples_with_generate_where_ranks_share_out_the_weights():
    machines, config = (Machine(gpus=1), Machine()), configured("engine.zero_stage=3")
    assert [planner.sampler_of(config, one.ranks) for one in machines] == ["native", "huggingface"]
    assert planner.sampler_of(configured("engine.zero_stage=2"), 8) == "native"
    assert [planner.sampler_of(configured(f"rollout.engine={word}"), 1) for word in ("huggingface", "vllm")] == [
        "huggingface", "vllm"]  # fmt: skip


@pytest.mark.parametrize("asked", ["rollout.engine=native", "rollout.old=sampler"])
def test_native_is_refused_where_ranks_share_out_the_weights(asked):
    config = configured("engine.zero_stage=3", asked)
    with pytest.raises(SteerError, match=r"rollout.engine: native cannot sample .* rollout.engine=huggingface"):
        memory(config, SEVEN, Machine())
    memory(config, SEVEN, Machine(gpus=1))


def test_a_cache_too_small_for_one_sequence_does_not_fit():
    found = memory(configured("rollout.engine=vllm", "rollout.gpu_memory=0.203"), SEVEN, Machine())
    assert not found.fits
    assert any("cache has room for" in text for text in found.shortfalls)


def test_a_node_without_enough_host_memory_does_not_fit():
    found = memory(configured("engine.offload=optimizer"), SEVEN, Machine(host_memory=100))
    assert any("host needs" in text for text in found.shortfalls)


@given(gpu_memory=st.floats(5, 200))
def test_it_fits_exactly_where_the_peak_is_within_the_limit(gpu_memory):
    found = memory(configured("engine.activations=recompute", "optimizer.micro_batch_sequences=1"), SEVEN,
                   Machine(gpu_memory=gpu_memory))  # fmt: skip
    assert found.fits == (max(sum(held.values()) for held in found.moments.values()) <= gpu_memory * GIB)


def test_gpus_that_prompts_or_an_engine_do_not_divide_among_are_refused():
    with pytest.raises(SteerError, match=r"optimizer.mini_batch_prompts: 32 prompts do not divide among 6 GPUs"):
        memory(configured(), SEVEN, Machine(gpus=6))
    with pytest.raises(SteerError, match=r"rollout.tensor_parallel: 4 does not divide the 2 GPUs"):
        memory(configured("rollout.engine=vllm", "rollout.tensor_parallel=4"), SEVEN, Machine(gpus=2))


def test_the_fewest_gpus_fit_and_one_step_fewer_do_not():
    config = configured(
        "engine.activations=recompute", "optimizer.micro_batch_tokens=4096", "rollout.batch_sequences=8"
    )
    fewest = fewest_gpus(config, SEVEN, Machine())
    assert fewest == 4
    assert memory(config, SEVEN, Machine(gpus=4)).fits
    assert not memory(config, SEVEN, Machine(gpus=2)).fits
    assert fewest_gpus(config, SEVEN, Machine(gpu_memory=10)) is None
