"""The ladder's three passes on small random models of eight kinds, in float64, against plain autograd."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from steer_core.common.errors import SteerError
from steer_core.formulas.token_stats import token_stats
from steer_core.ladder import passes as ladder
from steer_core.ladder.passes import Lens, derivative, gradient, lens_stats
from steer_core.policy.head import full_precision, logits_of
from steer_core.policy.score import hidden_states, score
from steer_core.policy.sequences import Sequences

VOCABULARY = 97
TEMPERATURE = 0.8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
FAMILIES = {
    "qwen2 untied": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=False),
    "qwen2 tied": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**GROUPED),
    "mistral, sliding window": lambda: MistralConfig(**GROUPED, sliding_window=4),
    "gemma2, capped logits": lambda: Gemma2Config(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
        sliding_window=4,
    ),
    "granite, scaled logits": lambda: GraniteConfig(
        **GROUPED, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**SHAPE),
}
TIED = {"qwen2 tied", "gemma2, capped logits", "gpt2"}


def tiny_sequences() -> Sequences:
    """Five ragged sequences, one of them without a response token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (5, 13), generator=generator)
    prompt_mask = torch.arange(6) >= torch.tensor([0, 3, 5, 1, 2])[:, None]
    response_mask = torch.arange(7) < torch.tensor([7, 1, 0, 4, 6])[:, None]
    return Sequences(ids[:, :6], prompt_mask.long(), ids[:, 6:], response_mask)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval().double()


@pytest.fixture
def lens(model):
    return Lens(model, tiny_sequences(), TEMPERATURE, micro_batch=2)


def own_forward(model, sequences):
    """(logits (N, V), last hidden states (N, D)) at the response tokens, from one call of the model itself."""
    mask = torch.cat([sequences.prompt_mask_BP, sequences.response_mask_BT.long()], 1)
    with full_precision(model):
        out = model(
            input_ids=torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            output_hidden_states=True,
        )
    keep, first = sequences.response_mask_BT, sequences.prompt_ids_BP.shape[1] - 1
    return out.logits[:, first:-1][keep], out.hidden_states[-1][:, first:-1][keep]


def own_values(lens):
    """(ln p, H) of every response token through the whole model at once, differentiable, by the definitions."""
    logp = torch.log_softmax(own_forward(lens.model, lens.sequences)[0] / lens.temperature, -1)
    return logp.gather(-1, lens.labels_N[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


def random_weights(lens, seed=3):
    """Two vectors (N,) of random weights, for ln p and for H."""
    return torch.randn(2, len(lens.labels_N), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_direction(lens, seed=5):
    """A direction of parameters, each tensor's entries about as large as its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * p.detach().std() * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in lens.parameters().items()
    }


def statistics_along(lens, direction, step):
    """The statistics with every parameter moved by step * direction; the parameters are put back."""
    parameters = lens.parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.add_(direction[name], alpha=step)
        moved = lens_stats(lens)
        for name, p in parameters.items():
            p.copy_(before[name])
    return moved


def central_difference(lens, direction, step=1e-6):
    """(d ln p, dH) along a direction, by two evaluations."""
    up, down = (statistics_along(lens, direction, s) for s in (step, -step))
    return (up.logprob - down.logprob) / (2 * step), (up.entropy - down.entropy) / (2 * step)


def with_untied_head(model):
    """A copy of the model whose output layer is a parameter of its own."""
    model = copy.deepcopy(model)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return model


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def test_families_are_tied_or_not_as_named(family, model):
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (family in TIED)


def test_body_then_head_in_chunks_is_the_models_own_forward(model):
    sequences = tiny_sequences()
    with torch.no_grad():
        expected, _ = own_forward(model, sequences)
        hidden = hidden_states(model, sequences)
        logits = torch.cat([logits_of(model, rows) for rows in hidden.split(5)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert "forward" not in vars(model.base_model)


def test_a_head_that_fails_leaves_the_model_whole(model):
    with pytest.raises(RuntimeError):
        logits_of(model, torch.zeros(2, 7, dtype=torch.float64))
    assert "forward" not in vars(model.base_model)


def test_statistics_are_those_of_the_scoring_pass(model, lens):
    mask = lens.sequences.response_mask_BT
    with torch.no_grad(), full_precision(model):
        expected = score(model, lens.sequences, TEMPERATURE).map(lambda x: x[mask])
        logits, _ = own_forward(model, lens.sequences)
    actual, again = lens_stats(lens), token_stats(logits, lens.labels_N, TEMPERATURE)
    for name, value in vars(actual).items():
        torch.testing.assert_close(value, vars(expected)[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(value, vars(again)[name], rtol=0, atol=1e-12)
        assert value.dtype is torch.float64
    assert actual.entropy.std() > 0.02


def test_gradient_is_autograds_through_the_whole_model(lens):
    weights = random_weights(lens)
    names, values = zip(*lens.parameters().items(), strict=True)
    for on_logprob, on_entropy in ((weights[0], None), (None, weights[1]), (weights[0], weights[1])):
        logprob, entropy = own_values(lens)
        value = 0 if on_logprob is None else (on_logprob * logprob).sum()
        value = value if on_entropy is None else value + (on_entropy * entropy).sum()
        expected = torch.autograd.grad(value, values)
        actual = gradient(lens, on_logprob, on_entropy)
        assert tuple(actual) == names
        for name, wanted in zip(names, expected, strict=True):
            torch.testing.assert_close(actual[name], wanted, rtol=1e-9, atol=1e-11 + 1e-12 * float(wanted.abs().max()))
    assert all(p.grad is None for p in values)


def test_derivative_is_the_central_difference_along_a_random_direction(lens):
    direction = random_direction(lens)
    for actual, expected in zip(derivative(lens, direction), central_difference(lens, direction), strict=True):
        assert actual.dtype is torch.float64
        assert expected.norm() > 0.1
        assert relative_error(actual, expected) < 1e-6


def test_derivative_and_gradient_are_transposes_of_one_another(lens):
    weights, direction = random_weights(lens), random_direction(lens)
    logprob, entropy = derivative(lens, direction)
    forward = float(weights[0] @ logprob + weights[1] @ entropy)
    pulled = gradient(lens, weights[0], weights[1])
    assert forward == pytest.approx(float(sum((pulled[n] * direction[n]).sum() for n in pulled)), rel=1e-9)


def test_derivative_is_linear_in_the_direction(lens):
    one, other = random_direction(lens, 5), random_direction(lens, 6)
    both = {name: 3 * one[name] - 0.5 * other[name] for name in one}
    parts = zip(derivative(lens, one), derivative(lens, other), derivative(lens, both), strict=True)
    for a, b, c in parts:
        torch.testing.assert_close(3 * a - 0.5 * b, c, rtol=1e-10, atol=1e-10)


def test_results_do_not_depend_on_chunks_or_micro_batches(model, monkeypatch):
    results = []
    for micro_batch, elements in ((8, 1 << 23), (1, 1 << 23), (3, VOCABULARY * 2), (2, 1)):
        monkeypatch.setattr(ladder, "_CHUNK_ELEMENTS", elements)
        lens = Lens(model, tiny_sequences(), TEMPERATURE, micro_batch=micro_batch)
        weights = random_weights(lens)
        told = gradient(lens, weights[0], weights[1])
        head = Lens(model, tiny_sequences(), TEMPERATURE, output_layer=True, micro_batch=micro_batch)
        results.append(
            [
                *vars(lens_stats(lens)).values(),
                *derivative(lens, random_direction(lens)),
                *told.values(),
                *gradient(head, weights[0]).values(),
                *derivative(head, random_direction(head)),
            ]
        )
    for values in results[1:]:
        for value, expected in zip(values, results[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)


def test_output_layer_direction_moves_the_unembedding_alone_tied_or_not(model):
    """Rung b: as measured on a copy whose output layer is its own parameter; the embedding stays."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lens = Lens(model, tiny_sequences(), TEMPERATURE, output_layer=True, micro_batch=2)
    free = Lens(with_untied_head(model), tiny_sequences(), TEMPERATURE, output_layer=True)
    assert list(lens.parameters()) == list(free.parameters())
    direction = random_direction(lens)
    for actual, expected in zip(derivative(lens, direction), central_difference(free, direction), strict=True):
        assert relative_error(actual, expected) < 1e-6
    weights = random_weights(lens)
    logprob, entropy = own_values(free)
    value = (weights[0] * logprob + weights[1] * entropy).sum()
    expected = torch.autograd.grad(value, list(free.parameters().values()))
    for actual, wanted in zip(gradient(lens, *weights).values(), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_output_layer_gradient_is_the_push_times_the_hidden_state(family, model):
    """dW = sum_s w_s (e_a - p_s) h_s^T / T, times what a model does to its logits after the unembedding."""
    lens = Lens(model, tiny_sequences(), TEMPERATURE, output_layer=True)
    (w, _), labels = random_weights(lens), lens.labels_N
    with torch.no_grad():
        logits, hidden = own_forward(model, lens.sequences)
    pushed = torch.nn.functional.one_hot(labels, VOCABULARY) - torch.softmax(logits / TEMPERATURE, -1)
    if "capped" in family:
        pushed = pushed * (1 - (logits / 3.0) ** 2)
    elif "scaled" in family:
        pushed = pushed / 3.0
    expected = torch.einsum("n,nv,nd->vd", w / TEMPERATURE, pushed, hidden)
    (actual,) = gradient(lens, w).values()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_a_tied_layers_whole_gradient_is_more_than_its_output_layers_share(family, model):
    lens = Lens(model, tiny_sequences(), TEMPERATURE)
    head = Lens(model, tiny_sequences(), TEMPERATURE, output_layer=True)
    (share,) = gradient(head, random_weights(head)[0]).values()
    names = {id(p): name for name, p in model.named_parameters()}
    whole = gradient(lens, random_weights(lens)[0])[names[id(model.get_output_embeddings().weight)]]
    assert torch.allclose(share, whole, rtol=1e-9, atol=1e-12) == (family not in TIED)


class PastItsBody(Qwen2ForCausalLM):
    """A model that takes its logits from the layers within its body."""

    def forward(self, input_ids, **_):
        return CausalLMOutputWithPast(logits=self.lm_head(self.model.norm(self.model.embed_tokens(input_ids))))


def test_a_model_that_goes_past_its_body_is_refused_and_not_misread():
    model = PastItsBody(Qwen2Config(**GROUPED)).eval()
    with pytest.raises(SteerError, match=r"model: PastItsBody does not take its logits.*use another model"):
        lens_stats(Lens(model, tiny_sequences(), TEMPERATURE))
    assert "forward" not in vars(model.model)


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
@pytest.mark.parametrize("family", ["qwen2 tied", "gpt-neox"])
def test_a_model_without_logits_over_a_vocabulary_is_refused(family, kind):
    model = kind.from_config(FAMILIES[family]())
    with pytest.raises(SteerError, match=f"{type(model).__name__} has no output layer.*AutoModelForCausalLM"):
        Lens(model, tiny_sequences())


def test_sequences_without_a_response_token_are_refused(model):
    sequences = tiny_sequences()
    empty = replace(sequences, response_mask_BT=torch.zeros_like(sequences.response_mask_BT))
    with pytest.raises(SteerError, match="no response token"):
        Lens(model, empty)
