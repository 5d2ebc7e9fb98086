"""Responses made by hand, and tokenizers of the kinds that models use."""

import math
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steer_core.runs.responses import Response

HOSTILE = [
    "</script>", "<script>", "alert(1)", "<!--", " ", "   ", "\n", "\n\n", "\t", "\r\n", "\"'`", "&amp;", "",
    "<img src=x onerror=alert(2)>", "😀", "👩\u200d💻", " שלום", " مرحبا", "\u202e", "evil", "\u200b", "\ufeff",
    "\x00", "\x1b[31m", "\u2028", "{{ 7*7 }}", "{% raw %}", "日本", "e\u0301", "a" * 300, "\\", "\ufffd",
]  # fmt: skip


def response(tokens, problem="p", sample=0, reward=0.0, finish="length", seed=0, **fields):
    """A response of these tokens, with numbers drawn at random; Omega in the paper's form, lambda by its size."""
    draw = random.Random(f"{seed} {problem} {sample}")
    entropy = [draw.expovariate(2) for _ in tokens]
    logprob = [-draw.expovariate(2) for _ in tokens]
    advantage = draw.choice([-1.0, 1.0])
    p = [math.exp(x) for x in logprob]
    omega = [-advantage * x * (1 - x) * (y + h) for x, y, h in zip(p, logprob, entropy, strict=True)]
    largest = max(map(abs, omega), default=1.0)
    numbers = {
        "probability": p, "logprob": logprob, "entropy": entropy, "omega": omega,
        "lambda_": [0.7 ** (abs(x) / largest) for x in omega], "token_ids": [draw.randrange(1 << 17) for _ in tokens],
    }  # fmt: skip
    text = "".join(tokens[:-1] if finish == "stop" else tokens)
    given = {"prompt": "1+1=", "advantage": advantage, **numbers, **fields}
    return Response(
        problem=problem, sample=sample, response=text, reward=reward, finish_reason=finish, tokens=list(tokens), **given
    )


def some_responses():
    """Two groups of three, with rewards 0 and 1, one response cut off."""
    return [
        response(
            [*f"{group}+{sample}=", "\n", " so", "<eos>"],
            f"problem {group}",
            sample,
            float(sample == 1),
            "length" if sample == 2 else "stop",
            prompt=f"{group}?",
        )
        for group in (3, 7)
        for sample in range(3)
    ]


def byte_level_tokenizer():
    """A byte-level BPE as GPT-2's and Qwen's are: 256 bytes, a few merges, <|im_end|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["so the answer is 12, so the sum is 7\n"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def spaced_tokenizer():
    """Pieces with ▁ for a space and none at the start of a text, as Llama's are: a token alone decodes without it."""
    words = ["<s>", "▁so", "▁the", "▁", "1", "2", "so", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>")


def tidying_tokenizer():
    """Words that decode with spaces between them, taken away again before a full stop, and one pair rewritten."""
    words = ["[SEP]", "so", "the", "do", "not", "##ly", ".", ","]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[SEP]"))
    rewrites = decoders.Replace(" do not", " don't")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=True), decoders.Fuse(), rewrites])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]")
