"""`steer plan`: each formula by hand, by a real model, or by what it must do when one setting changes."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from steer_core import planner, planner_tables, planner_times, policy, token_stats
from steer_core.cli import main
from steer_core.config import load_config
from steer_core.errors import SteerError
from steer_core.planner import GIB, Machine, fewest_gpus, memory
from steer_core.policy import load_policy
from steer_core.shapes import Shape, known_shapes, read_shape, shape_of

SEVEN = known_shapes()["Qwen/Qwen2.5-7B"]
P = SEVEN.parameters
SMALL = Shape("small", 2, 64, 4, 2, 16, 128, 1000, 512, 1, 1)
BF16 = ("engine.name=deepspeed", "model.dtype=bfloat16", "model.device=cuda", "train.probe_sequences=0")
BIG = (*BF16, "rollout.prompts=512", "optimizer.mini_batch_prompts=32", "rollout.max_new_tokens=3072")


def configured(*overrides, base=BIG):
    return load_config(None, [*base, *overrides])


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
    [("{", "cannot be read"), ('{"model_type": "gpt2"}', "'gpt2' is none that"), ('{"model_type": "qwen2"}', "no '")],
)
def test_a_folder_that_gives_no_shape_is_told(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SteerError, match=rf"model.path: .*{message}"):
        shape_of(str(tmp_path))


# memory


def test_the_constants_are_those_of_the_code_that_they_describe():
    assert planner.LOGITS_AT_ONCE == policy._LOGITS_AT_ONCE
    assert planner.STATISTICS_AT_ONCE == token_stats._CHUNK_ELEMENTS


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(0, 2, 2, 12), (1, 2, 2, 12 / 8), (2, 2, 2 / 8, 12 / 8), (3, 2 / 8, 2 / 8, 12 / 8)],
)
def test_each_stage_of_zero_shares_out_one_more_part(stage, weights, gradients, optimiser):
    found = parts(f"engine.zero_stage={stage}")
    gathered = 2 * planner.LIVE if stage == 3 else 0
    assert found["weights"] == pytest.approx(weights * P + gathered)
    assert found["gradients"] == pytest.approx(gradients * P)
    assert found["optimiser"] == pytest.approx(optimiser * P)


@given(ranks=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_zero_3_on_n_gpus_holds_an_nth(ranks):
    found = parts("engine.zero_stage=3", ranks=ranks)
    assert (found["weights"] - 2 * planner.LIVE) * ranks == pytest.approx(2 * P)
    assert (found["gradients"] + found["optimiser"]) * ranks == pytest.approx(14 * P)


@pytest.mark.parametrize(
    ("overrides", "bytes_a_parameter"),
    [((), 8), (("optimizer.name=sgd",), 0), (("optimizer.name=sgd", "optimizer.momentum=0.9"), 4),
     (("model.dtype=float64",), 16), (("engine.name=deepspeed", "engine.zero_stage=0"), 8),
     (("engine.name=deepspeed", "engine.zero_stage=1"), 12)],
)  # fmt: skip
def test_the_optimiser_keeps_its_moments_and_deepspeed_float32_weights_too(overrides, bytes_a_parameter):
    config = load_config(None, overrides)
    assert planner.optimiser(config, SMALL, 1) == bytes_a_parameter * SMALL.parameters


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
    assert [part["gradients"] for part in gpu] == [2 * P / 8, 0, 0]
    assert gpu[0]["weights"] - gpu[2]["weights"] == pytest.approx(2 * P / 8)
    assert "optimiser" not in none.host
    assert some.host["optimiser"] == 16 * P
    assert everything.host["weights"] == 2 * P
    assert memory(configured("engine.offload=optimizer"), SEVEN, replace(machine, nodes=2)).host["optimiser"] == 8 * P


def test_a_layer_keeps_what_is_counted_by_hand():
    norms, attention, mlp = 2 * (64 * 4 + 2 * 64 * 2), 4 * 64 * 2, 4 * 128 * 2
    assert planner.layer_bytes(SMALL, 2) == norms + attention + mlp + 4 * 4
    assert planner.layer_bytes(SMALL, 4) == 2 * 3 * 64 * 4 + 4 * 64 * 4 + 4 * 128 * 4 + 4 * 4


def test_recomputing_keeps_one_layer_and_every_layers_input():
    keep, again = (configured(f"engine.activations={word}") for word in ("keep", "recompute"))
    difference = planner.activations(keep, SEVEN, 100, 1) - planner.activations(again, SEVEN, 100, 1)
    assert difference == 100 * (27 * planner.layer_bytes(SEVEN, 2) - 28 * 2 * 3584)


def test_packed_sequences_need_no_mask():
    padded, packed = (
        configured("optimizer.micro_batch_tokens=4096", f"optimizer.packing={w}") for w in ("none", "packed")
    )
    difference = planner.activations(padded, SEVEN, 4096, 2) - planner.activations(packed, SEVEN, 4096, 2)
    assert difference == 3 * 2 * 2048 * 2048


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(("optimizer.micro_batch_sequences=4",), (4 * 3096, 4)),
     (("optimizer.micro_batch_sequences=9999",), (256 * 3096, 256)),
     (("optimizer.micro_batch_tokens=10000",), (10000, 3)),
     (("optimizer.micro_batch_tokens=5",), (3096, 1))],
)  # fmt: skip
def test_a_micro_batch_is_full_of_long_sequences(overrides, expected):
    assert planner.micro_batch(configured(*overrides), SEVEN) == expected


def test_sequences_are_no_longer_than_the_models_positions():
    short = replace(SEVEN, positions=1000)
    assert planner.micro_batch(configured("optimizer.micro_batch_sequences=2"), short) == (2000, 2)


def test_logits_never_lie_there_for_more_than_some_rows():
    config = configured()
    more = planner.statistics(config, SEVEN, 20000) - planner.statistics(config, SEVEN, 10000)
    assert more == 10000 * 2 * 2 * 3584
    few = planner.statistics(config, SEVEN, 10) - planner.statistics(config, SEVEN, 9)
    assert few == 152064 * (2 * 2 + planner.STATISTICS_COPIES * 4) + 2 * 2 * 3584


def test_the_output_layers_gradient_is_there_twice_while_it_is_added_up():
    wider = replace(SEVEN, hidden=2 * SEVEN.hidden)
    more = planner.statistics(configured(), wider, 10) - planner.statistics(configured(), SEVEN, 10)
    assert more == 2 * 2 * SEVEN.head + 10 * 2 * 2 * SEVEN.hidden


def test_vllm_takes_its_share_and_sleeps_while_the_trainer_works():
    found = memory(configured("rollout.engine=vllm", "rollout.gpu_memory=0.5"), SEVEN, Machine()).moments
    taken = {part: size for part, size in found["rollout"].items() if part.startswith("vLLM")}
    assert sum(taken.values()) == pytest.approx(40 * GIB)
    assert taken["vLLM weights"] == 2 * P
    asleep = [part for part in found["backward pass"] if part.startswith("vLLM")]
    assert asleep == ["vLLM workspace"]


def test_the_cache_holds_what_weights_and_workspace_leave_and_two_gpus_hold_more_than_twice_as_much():
    one, two = (
        planner.sampler_memory(configured("rollout.engine=vllm", f"rollout.tensor_parallel={t}"), SEVEN, 80 * GIB)[1]
        for t in (1, 2)
    )
    assert one == pytest.approx((0.4 * 80 * GIB - 2 * P - planner.WORKSPACE) / 57344)
    assert two == pytest.approx((0.4 * 80 * GIB - P - planner.WORKSPACE) / (57344 / 2))


def test_generates_cache_is_one_batch_at_full_length():
    sampled, tokens = planner.sampler_memory(configured("rollout.batch_sequences=16"), SEVEN, 80 * GIB)
    assert tokens == 16 * (24 + 3072)
    assert sampled["cache"] == tokens * 57344


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


# time


def seconds(*overrides, machine=None):
    return planner_times.step_time(configured(*overrides), SEVEN, machine or Machine()).parts


def test_twice_the_peak_halves_training_and_leaves_decoding():
    slow, fast = (seconds("rollout.engine=vllm", machine=Machine(peak_tflops=peak)) for peak in (500, 1000))
    assert fast["update"] == pytest.approx(slow["update"] / 2)
    assert fast["scoring"] == pytest.approx(slow["scoring"] / 2)
    assert fast["rollout"] > 0.9 * slow["rollout"]


def test_recomputing_takes_a_third_more_of_the_layers_and_steers_values_pass_another():
    body = replace(SEVEN, vocabulary=0)
    plain, again, steer = (
        planner_times.update_time(configured("optimizer.micro_batch_sequences=8", *more), body, Machine())
        for more in ((), ("engine.activations=recompute",), ("engine.activations=recompute", "intervention.name=steer"))
    )  # fmt: skip
    assert again == pytest.approx(plain * 4 / 3)
    assert steer == pytest.approx(plain * 5 / 3)


def test_an_intervention_over_one_micro_batch_needs_no_values_pass():
    config = configured("intervention.name=steer", "optimizer.micro_batch_sequences=9999")
    assert planner_times.values_pass(config, Machine(), SEVEN) == 0


@pytest.mark.parametrize(("stage", "collectives"), [(0, 2), (1, 2), (2, 4 + 1), (3, 4 * 3)])
def test_communication_by_stage(stage, collectives):
    machine = Machine(latency=0)
    found = planner_times.communication_time(
        configured(f"engine.zero_stage={stage}", "optimizer.micro_batch_sequences=8"), SEVEN, machine
    )
    assert found == pytest.approx(collectives * 2 * P * 7 / 8 / 300e9)


def test_one_gpu_talks_to_nobody_and_the_slower_network_decides():
    assert planner_times.ring(Machine(gpus=1), 1e9) == 0
    assert planner_times.collective_bandwidth(Machine(nodes=2, interconnect=10)) == 80
    assert planner_times.collective_bandwidth(Machine(nodes=2, interconnect=100)) == 300
    assert planner_times.collective_bandwidth(Machine(nodes=1, interconnect=10)) == 300


def test_a_decoding_step_reads_weights_and_cache():
    config, machine = configured("rollout.engine=vllm"), Machine(decode_overhead=0)
    told = planner_times.Lengths(200, 1000, 3072)
    one, bound = planner_times.decode_step(config, SEVEN, machine, 1, told)
    assert one == pytest.approx((2 * P + 700 * 57344) / (3350e9 * 0.6))
    assert bound == "reading weights"
    many, bound = planner_times.decode_step(config, SEVEN, machine, 500, told)
    assert many - one == pytest.approx(499 * 700 * 57344 / (3350e9 * 0.6))
    assert bound == "reading the cache"


def test_the_tail_of_the_longest_response_is_there_on_any_number_of_gpus():
    config = configured("rollout.engine=vllm")
    told = planner_times.lengths(config, Machine())
    tail = (told.longest - told.response) * planner_times.decode_step(config, SEVEN, Machine(), 1, told)[0]
    assert planner_times.rollout_time(config, SEVEN, Machine(nodes=4))[0] > tail
    wide = planner_times.widened(config, 512)
    assert planner_times.rollout_time(wide, SEVEN, Machine(nodes=64)) == (pytest.approx(1.5 * tail, rel=0.1),
                                                                       "the tail of the longest response")  # fmt: skip


def test_longer_responses_take_longer_and_are_cut_at_the_longest():
    short, long, cut = (
        planner_times.lengths(configured(), Machine(response_tokens=n)).response for n in (100, 2000, 9999)
    )
    assert (short, long, cut) == (100, 2000, 3072)
    assert seconds(machine=Machine(response_tokens=100))["update"] < seconds()["update"]


def test_tokens_of_a_step_are_prompts_times_responses_times_lengths():
    found = planner_times.tokens_per_step(configured(), Machine(prompt_tokens=100, response_tokens=900))
    assert found["responses a rollout"] == 512 * 8 * 900
    assert found["tokens an optimiser step"] == 32 * 8 * 1000


def test_more_nodes_are_never_slower_and_the_mini_batch_grows_to_a_prompt_a_gpu():
    rows = planner_times.scale_out(configured("rollout.engine=vllm"), SEVEN, Machine())
    assert [machine.nodes for machine, _, _ in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert [config.optimizer.mini_batch_prompts for _, config, _ in rows] == [32, 32, 32, 64, 128, 256, 512]
    times = [step.seconds for _, _, step in rows]
    assert times == sorted(times, reverse=True)
    assert planner_times.widened(configured(), 1024) is None


def test_deepspeeds_own_adam_is_faster_on_the_host_and_the_gpu_faster_still():
    on_gpu, own, plain = (
        seconds(*more)["optimiser"]
        for more in ((), ("engine.offload=optimizer", "optimizer.name=cpu-adam"), ("engine.offload=optimizer",))
    )
    assert on_gpu < own < plain


# the command


def test_the_least_change_makes_it_fit():
    config, machine = configured("rollout.engine=vllm", "engine.zero_stage=0"), Machine()
    told = planner_tables.plan(config, SEVEN, machine)
    assert not told["fits"]
    changed = load_config(None, [*BIG, "rollout.engine=vllm", "engine.zero_stage=0", *told["least_change"]])
    assert memory(changed, SEVEN, machine).fits
    assert f"The least change that makes it fit: {' '.join(told['least_change'])}" in planner_tables.verdict(
        told, machine
    )


def test_a_single_change_is_preferred_to_two():
    config = configured("engine.zero_stage=3", "optimizer.micro_batch_sequences=2", "engine.activations=keep",
                        "rollout.batch_sequences=8")  # fmt: skip
    machine = Machine(gpu_memory=60)
    assert planner_tables.least_change(config, SEVEN, machine) == ["engine.activations=recompute"]


def test_nothing_fits_a_gpu_of_one_gibibyte_and_the_verdict_says_so():
    config, machine = configured("rollout.engine=vllm"), Machine(gpu_memory=1)
    told = planner_tables.plan(config, SEVEN, machine)
    assert told["least_change"] == []
    assert "Neither a change of settings nor more such GPUs" in planner_tables.verdict(told, machine)


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    return ended.value.code


def test_the_command_ends_with_0_where_it_fits_and_writes_everything(tmp_path, capsys):
    file = tmp_path / "new" / "plan.json"
    assert run("paper/qwen2.5-math-7b-steer", "--json", str(file)) == 0
    told = json.loads(file.read_text())
    assert told["fits"]
    assert told["assumptions"]["gpus"] == 8
    assert {"memory", "tokens", "seconds", "scale_out", "bottleneck", "fewest_gpus"} <= told.keys()
    assert "fits: " in capsys.readouterr().out


def test_the_command_ends_with_1_where_it_does_not_fit(capsys):
    assert run("paper/qwen2.5-math-7b-steer", "--gpu-memory", "24", "engine.activations=keep") == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_run_on_a_cpu_is_planned_for_one(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert "memory of a process" in out
    assert "this machine" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--gpus", "0"), "plan.gpus: 0 is not allowed"), (("--utilisation", "2"), "plan.utilisation: 2.0"),
     (("model.path=Qwen/Qwen9",), "did you mean")],
)  # fmt: skip
def test_what_cannot_be_planned_is_told(words, message, capsys):
    assert run(*words) == 2
    assert message in capsys.readouterr().err
