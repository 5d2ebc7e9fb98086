"""The forward passes of training: what they read, by layout, and the memory that they need.

A run finds the layout with the model in its hands (`training/scoring.py`). Here it is the one found for a plain
transformer. L: tokens that pass the layers, B: responses, P and T: tokens of the longest prompt and response, N:
response tokens, each a row of logits, V: vocabulary, D: hidden size, a: features of all queries of a token, e: bytes
of a number in model.dtype, w: of one in float32, or in float64 where the model is.
"""

from __future__ import annotations

from math import ceil, gcd, lcm
from typing import NamedTuple

from steer_core.config.config import Config
from steer_core.formulas.linear_stats import BLOCKS
from steer_core.formulas.token_stats import CHUNK_ELEMENTS
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.shapes import Shape
from steer_core.planner.states import BYTES, is_zero
from steer_core.policy.head import SHARE_OF_MEMORY
from steer_core.policy.score import Layout

STATISTICS_COPIES = 4
"""Copies of a reduced chunk in float32: shifted logits, exponentials, their squares, and one of slack."""
COUNTDOWN_PROMPT = 24
"""Tokens of a long Countdown prompt, a character each."""


class MicroBatch(NamedTuple):
    """The largest forward pass of training.

    tokens: L, that pass the layers. sequences: B, of full length. prompts: how many of them are read. rows: N.
    """

    tokens: int
    sequences: int
    prompts: int
    rows: int


def longest_prompt(config: Config) -> int:
    """Tokens of the longest prompt: task.prompt_tokens, else 1024; Countdown's are short."""
    if config.task.name == "countdown":
        return COUNTDOWN_PROMPT
    return config.task.prompt_tokens or 1024


def longest_sequence(config: Config, shape: Shape) -> int:
    """Tokens of the longest prompt with the longest response: no more than the model has positions."""
    return min(longest_prompt(config) + config.rollout.max_new_tokens, shape.positions)


def longest_response(config: Config, shape: Shape) -> int:
    """Tokens of the longest response."""
    return min(config.rollout.max_new_tokens, shape.positions)


def shared_out(config: Config, ranks: int) -> bool:
    """Whether ranks hold parts of every weight, so that all must make the same passes by the model's own forward."""
    return is_zero(config, 3) and ranks > 1


def layout(config: Config) -> Layout:
    """How sequences lie in a forward pass, where attention can be exchanged; ZeRO-3 shares no prompts."""
    settings = config.optimizer
    finds_borders = settings.packing == "auto" and config.model.attention == "flash_attention_2"
    if settings.micro_batch_tokens is not None and (settings.packing == "packed" or finds_borders):
        return "packed"
    return "shared" if settings.shared_prompts == "auto" and not is_zero(config, 3) else "padded"


def most_prompts(sequences: int, group: int) -> int:
    """To how many prompts so many neighbouring responses may belong, in passes that follow one another."""
    return (2 * group - gcd(sequences, group) + sequences - 1) // group


def prompts_read(prompts: int, group: int, size: int) -> int:
    """How often prompts are read in passes of `size` neighbouring responses: once in each that has a response to it."""
    rows = prompts * group
    return ceil(rows / size) + prompts - ceil(rows / lcm(size, group))


def micro_batch(config: Config, shape: Shape) -> MicroBatch:
    """The largest forward pass of training: full of sequences of full length.

    Shared, a prompt is read once, and the last token of a response, which predicts nothing, is not. By tokens, prompts
    may be short, and nearly all tokens rows of logits.
    """
    settings, group, shared = config.optimizer, config.rollout.responses, layout(config) == "shared"
    longest, response = longest_sequence(config, shape), longest_response(config, shape)
    most = settings.mini_batch_prompts * group

    def read(prompts: int, sequences: int) -> int:
        return prompts * (longest - response) + sequences * (response - 1) if shared else sequences * longest

    if settings.micro_batch_tokens is None:
        sequences = min(settings.micro_batch_sequences, most)
        prompts = min(most_prompts(sequences, group), settings.mini_batch_prompts) if shared else sequences
        return MicroBatch(read(prompts, sequences), sequences, prompts, sequences * response)
    budget = max(settings.micro_batch_tokens, longest)
    sequences = min(budget // longest, most)
    if shared:  # whole groups, and what fits of one more
        prompt = longest - response
        groups, left = divmod(budget, prompt + group * response)
        sequences = min(groups * group + max((left - prompt) // response, 0), most)
    prompts = min(most_prompts(sequences, group), settings.mini_batch_prompts) if shared else sequences
    tokens = min(budget, read(settings.mini_batch_prompts, most))
    return MicroBatch(tokens, sequences, prompts, min(budget, most * response))


def layer_bytes(config: Config, shape: Shape, batch: MicroBatch) -> int:
    """Bytes that one layer keeps of a micro-batch for its backward pass; i: the MLP's width.

    Of a token: two norms, each its input in float32, the normalised and the scaled vector, 2 D (max(4, e) + 2 e); the
    gated MLP, 4 e i; a float32 a head. Attention: queries, keys and values repeated to all heads, and the result, 4 e
    a. Shared: queries, result and the result in the row's order, 3 e a; keys and values repeated to all heads, 2 e a,
    and once more for every response those of its prompt and its own, 2 e a B (P + T - 1).
    """
    size = BYTES[config.model.dtype]
    norms = 2 * shape.hidden * (max(4, size) + 2 * size)
    token = norms + 4 * size * shape.intermediate + 4 * shape.heads
    if layout(config) != "shared":
        return batch.tokens * (token + 4 * size * shape.query_width)
    seen = batch.sequences * (longest_sequence(config, shape) - 1)
    return batch.tokens * token + size * shape.query_width * (5 * batch.tokens + 2 * seen)


def mask_pairs(config: Config, shape: Shape, batch: MicroBatch) -> float:
    """Elements of the attention mask.

    Padded L^2 / B, packed L^2, neither with flash attention; shared B (T - 1) (P + T - 1).
    """
    if layout(config) == "shared":
        fed = longest_response(config, shape) - 1
        return batch.sequences * fed * (longest_sequence(config, shape) - 1)
    if config.model.attention == "flash_attention_2":
        return 0
    return batch.tokens**2 / (1 if layout(config) == "packed" else batch.sequences)


def activations(config: Config, shape: Shape, batch: MicroBatch) -> float:
    """Bytes of a micro-batch's activations at the peak of its backward pass.

    `keep`: `layer_bytes` of every layer, and the last norm. `recompute`: each layer's input, e D, and one layer whole.
    Both: three gradients of the MLP's width, and the mask, a byte an element, and e once more in every layer that is
    whole: attention takes it as numbers.
    """
    size = BYTES[config.model.dtype]
    last, gradients = shape.hidden * (max(4, size) + 2 * size), 3 * size * shape.intermediate
    again = config.engine.activations == "recompute"
    whole = 1 if again else shape.layers
    inputs = batch.tokens * shape.layers * size * shape.hidden if again else 0
    mask = mask_pairs(config, shape, batch) * (1 + size * whole)
    return inputs + whole * layer_bytes(config, shape, batch) + batch.tokens * (last + gradients) + mask


def logits_at_once(config: Config, machine: Machine) -> int:
    """Most elements of float32 logits within the budget: engine.logits_mib, else a share of the device's memory."""
    if config.engine.logits_mib is not None:
        return int(config.engine.logits_mib * 2**20) // 4
    return int(machine.gpu_memory * GIB) // SHARE_OF_MEMORY // 4


def made_again(config: Config, shape: Shape, rows: float, machine: Machine) -> bool:
    """Whether so many rows of logits are beyond the budget, so that the backward pass makes them anew."""
    return rows * shape.vocabulary > logits_at_once(config, machine)


def token_stats_bytes(config: Config, shape: Shape, rows: int, machine: Machine) -> float:
    """Bytes for log-probs and entropies of N rows, at the peak of the backward pass.

    Logits w N V where the budget holds them, else none. Two blocks, of w and of e bytes an element. The states of the
    rows, e N D, their gradient as it is summed, w N D, and that of the output layer, e V D. Of a narrower dtype than
    float32 also the states' gradient in it, e N D, and a tile of the layer's as it is summed, w C D, C the columns of a
    block. On a CPU both blocks have w bytes, and a narrower dtype is widened first: the states, w N D, and a tile of
    the weight, w C D.

    Under ZeRO-3 the weight is there in the model's own forward alone, which makes as many rows at a time as the budget
    holds: see `chunk_bytes`.
    """
    size = BYTES[config.model.dtype]
    if is_zero(config, 3):
        return chunk_bytes(config, shape, rows, machine)
    wide, kept = max(4, size), not made_again(config, shape, rows, machine)
    most = BLOCKS["cpu" if machine.on_cpu else "cuda"]
    columns = min(most[1], shape.vocabulary)
    block = min(most[0], rows) * columns
    logits = wide * rows * shape.vocabulary if kept else 0
    blocks = block * (wide + (wide if machine.on_cpu else size))
    states, tiles = size + wide, 0
    if size < wide:
        states += size + (wide if machine.on_cpu else 0)
        tiles = wide * columns * shape.hidden * (2 if machine.on_cpu else 1)
    return logits + blocks + states * rows * shape.hidden + tiles + size * shape.head


def chunk_bytes(config: Config, shape: Shape, rows: int, machine: Machine) -> float:
    """Bytes for log-probs and entropies of N rows by the model's own forward, in equal chunks within the budget.

    Logits of a chunk and their gradient, in e; STATISTICS_COPIES of CHUNK_ELEMENTS elements, in w; the states of all
    rows and their gradient, in e; and two gradients of the output layer: the sum so far, and the next chunk's before
    it is added.
    """
    size, vocabulary = BYTES[config.model.dtype], shape.vocabulary
    chunks = ceil(rows / max(1, logits_at_once(config, machine) // vocabulary))
    elements = ceil(rows / chunks) * vocabulary
    reduced = STATISTICS_COPIES * max(4, size) * min(elements, max(CHUNK_ELEMENTS, vocabulary))
    return 2 * size * elements + reduced + 2 * size * rows * shape.hidden + 2 * size * shape.head


def tied_bytes(config: Config, shape: Shape, gone: float) -> float:
    """Bytes that the end of a backward pass needs beyond its peak, for a layer that is the embedding too; else 0.

    Its gradient waits for the embedding's, e V D each, while activations and statistics, `gone`, are given up.
    """
    return max(0.0, 2 * BYTES[config.model.dtype] * shape.head - gone) if shape.tied else 0.0
