"""`steer plan`'s times, by hand or by what one setting changes; its tables; the command."""

import json
from dataclasses import replace

import pytest
from planned import BIG, SEVEN, P, configured

from steer_core.cli.main import main
from steer_core.config.config import load_config
from steer_core.planner import tables as planner_tables
from steer_core.planner import times as planner_times
from steer_core.planner.machine import Machine
from steer_core.planner.memory import memory, rule_numbers

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


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [(("engine.logits_mib=99",), 4), ((), 3), (("engine.logits_mib=99", "intervention.name=steer"), 5),
     (("intervention.name=steer",), 4), (("engine.logits_mib=99", "engine.activations=recompute"), 4)],
)  # fmt: skip
def test_logits_beyond_the_budget_take_one_product_more_and_a_values_pass_another(overrides, passes):
    head, config = replace(SEVEN, layers=0), configured("optimizer.micro_batch_sequences=8", *overrides)
    responses = 4 * 8 * 1024
    expected = passes * responses * 2 * SEVEN.head / (989e12 * 0.35)
    assert planner_times.update_time(config, head, Machine()) == pytest.approx(expected)


def test_whether_logits_are_made_again_is_asked_of_a_mean_micro_batch():
    """16 prompts a GPU give 128 responses of 100 tokens in 16 passes of 800."""
    told = Machine(gpus=2, response_tokens=100)
    config = configured("optimizer.micro_batch_sequences=8", f"engine.logits_mib={800 * 152064 * 4 / 2**20}")
    assert planner_times.mean_rows(config, told, SEVEN, 16) == 800
    head = replace(SEVEN, layers=0)
    more, same = (planner_times.update_time(config, head, replace(told, response_tokens=n)) for n in (101, 100))
    assert more / same == pytest.approx(4 / 3 * 1.01)


def test_a_pass_reads_a_shared_prompt_once_and_attention_counts_what_tokens_see():
    machine, more = Machine(prompt_tokens=200, response_tokens=1000), ("optimizer.micro_batch_sequences=8",)
    speed, token = 989e12 * 0.35, 28 * 2 * SEVEN.layer_matrices
    pair = 28 * 4 * SEVEN.query_width  # a score and its part of the sum
    answers = 10 * 8 * (1000 * token + (200 + 1000 / 2) * 1000 * pair + 1000 * 2 * SEVEN.head)
    prompt = 200 * token + 200 / 2 * 200 * pair
    for words, times in (((), 10), (("optimizer.shared_prompts=none",), 80)):
        found = planner_times.pass_time(configured(*more, *words), SEVEN, machine, 10, 1, 1)
        assert found == pytest.approx((answers + times * prompt) / speed)


def test_small_passes_read_a_prompt_again():
    config = configured("optimizer.micro_batch_sequences=2")
    assert planner_times.prompts_of_passes(config, SEVEN, Machine(), 10) == 40
    whole = configured("optimizer.micro_batch_sequences=80")
    assert planner_times.prompts_of_passes(whole, SEVEN, Machine(), 10) == 10


def test_passes_by_tokens_read_a_prompt_again_where_they_begin_within_its_group():
    """Four sequences a pass of 1000 tokens each: 10 prompts with 8 responses are in 20 passes."""
    told = Machine(prompt_tokens=100, response_tokens=900)
    config = configured("optimizer.micro_batch_tokens=4000")
    found = planner_times.prompts_of_passes(config, SEVEN, told, 10)
    assert found == 10 + 19 * 7 / 8
    whole = configured("optimizer.micro_batch_tokens=80000")
    assert planner_times.prompts_of_passes(whole, SEVEN, told, 10) == 10
    packed = configured("optimizer.micro_batch_tokens=4000", "optimizer.packing=packed")
    assert planner_times.prompts_of_passes(packed, SEVEN, told, 10) == 80


def test_statistics_that_the_sampler_keeps_save_the_scoring_pass():
    assert seconds("rollout.old=sampler")["scoring"] == 0
    assert seconds("rollout.old=score")["scoring"] > 0
    assert seconds("rollout.old=sampler")["update"] == seconds()["update"]


@pytest.mark.parametrize(
    ("stage", "bytes_a_parameter"),
    [(0, 2 * 4), (1, 2 * 4 + 2), (2, 4 * 2 * 4 + 2), (3, 4 * (2 * 2 + 4))],
)
def test_communication_by_stage_is_gradients_in_float32_and_weights_as_they_are(stage, bytes_a_parameter):
    machine = Machine(latency=0)
    found = planner_times.communication_time(
        configured(f"engine.zero_stage={stage}", "optimizer.micro_batch_sequences=8"), SEVEN, machine
    )
    assert found == pytest.approx(bytes_a_parameter * P * 7 / 8 / 300e9)


def test_the_local_engine_sums_in_the_models_precision():
    config = load_config(None, ["model.dtype=float64", "optimizer.mini_batch_prompts=8"])
    found = planner_times.communication_time(config, SEVEN, Machine(latency=0))
    assert found == pytest.approx(2 * 8 * P * 7 / 8 / 300e9)


@pytest.mark.parametrize(
    ("overrides", "bytes_a_parameter"),
    [((), 4 + 2), (("engine.zero_stage=1",), 4 + 2), (("engine.zero_stage=3",), 4 * 8 + 4 + 2),
     (("model.dtype=float32",), 4 * 8 + 4), (("model.dtype=float32", "optimizer.micro_batch_sequences=9999"), 4 + 4)],
)  # fmt: skip
def test_offloaded_gradients_go_down_in_float32_and_weights_come_up(overrides, bytes_a_parameter):
    config = configured("engine.offload=optimizer", "optimizer.micro_batch_sequences=8", *overrides)
    slow, fast = (planner_times.optimiser_time(config, SEVEN, Machine(pcie=rate)) for rate in (10, 20))
    assert slow - fast == pytest.approx(bytes_a_parameter * P / 8 / 20e9)


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


def test_native_reads_the_cache_of_a_prompt_once_for_its_responses():
    told, machine = planner_times.Lengths(200, 1000, 3072), Machine(decode_overhead=0)
    for engine, prompts in (("native", 3), ("huggingface", 20)):
        config = configured(f"rollout.engine={engine}")
        found, _ = planner_times.decode_step(config, SEVEN, machine, 20, told)
        assert found == pytest.approx((2 * P + (prompts * 200 + 20 * 500) * 57344) / (3350e9 * 0.6))


def test_generate_reads_a_prompt_for_every_response_native_and_vllm_once():
    """The time beside decoding, of 64 prompts with 8 responses a GPU; native's batches cut groups of 8 at 12."""
    machine = Machine(prompt_tokens=200)
    for more, times in (
        (("rollout.engine=huggingface",), 64 * 8),
        (("rollout.engine=native",), 64),
        (("rollout.engine=native", "rollout.batch_sequences=12"), 43 + 64 - 22),
        (("rollout.engine=vllm", "rollout.gpu_memory=0.6"), 64),
    ):
        config, found = configured(*more), []
        for prompt in (200, 0.01):
            told = replace(machine, prompt_tokens=prompt)
            lengths = planner_times.lengths(config, told)
            rollout = planner_times.rollout_time(config, SEVEN, told)[0]
            at_once = {"vllm": 256}.get(config.rollout.engine, config.rollout.batch_sequences)
            full, _ = planner_times.decode_step(config, SEVEN, told, at_once, lengths)
            last, _ = planner_times.decode_step(config, SEVEN, told, 1, lengths)
            found.append(rollout - 512 * 1024 / at_once * full - 2048 * last)
        reading = SEVEN.forward_flops(200 * times, times, 200) - SEVEN.forward_flops(0.01 * times, times, 0.01)
        assert found[0] - found[1] == pytest.approx(reading / (989e12 * 0.35), rel=1e-6)


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
    assert capsys.readouterr().out.startswith("fits: ")


def test_the_command_ends_with_1_where_it_does_not_fit(capsys):
    assert run("paper/qwen2.5-math-7b-steer", "--gpu-memory", "24", "engine.activations=keep") == 1
    assert capsys.readouterr().out.startswith("does not fit 8 GPUs of 24 GiB: ")


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


def test_a_rule_that_sees_all_ranks_tokens_costs_their_gathering_and_a_log_costs_nothing():
    """Ten numbers of 4 bytes a token of an optimiser step cross for scope step, six of a rollout's for stare's gate."""
    config = {name: configured(f"intervention.name={name}", "rollout.max_new_tokens=300") for name in ("none", "steer")}
    config["stare"] = configured("intervention.name=stare", "rollout.max_new_tokens=300")
    one = config["steer"]
    a_step = one.optimizer.mini_batch_prompts * one.rollout.responses * 100
    assert rule_numbers(config["none"], 100) == (0, 0)
    assert rule_numbers(one, 100) == (4 * 10 * a_step, 0)
    a_rollout = one.rollout.prompts * one.rollout.responses * 100
    assert rule_numbers(config["stare"], 100) == (4 * 10 * a_step, 4 * 6 * a_rollout)
    wide, alone = Machine(latency=0), Machine(gpus=1, latency=0)
    steps, sent = one.rollout.prompts // one.optimizer.mini_batch_prompts, rule_numbers(one, 100)[0]
    expected = steps * sent * 7 / 8 / (planner_times.collective_bandwidth(wide) * 1e9)
    assert planner_times.rule_time(one, wide) == pytest.approx(expected)
    assert planner_times.rule_time(one, alone) == planner_times.rule_time(config["none"], wide) == 0
    parts = memory(one, SEVEN, wide).moments["backward pass"]
    assert parts["tokens of all ranks"] == 2 * rule_numbers(one, 300)[0]
    assert "tokens of all ranks" not in memory(one, SEVEN, alone).moments["backward pass"]
