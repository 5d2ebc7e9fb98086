"""Which Hugging Face models train, resume and estimate here: one tiny random model of every architecture, tried.

    python reproduce/architectures.py                          # all of them, or what is not there yet: 6 minutes
    python reproduce/architectures.py --only mixtral gemma3    # some of them
    python reproduce/architectures.py --again                  # every one anew

Each has dropout and router jitter in its configuration, persistent buffers that are not the class's own, and the
embedded model's tokenizer. It is trained for two rollouts of the embedded task (a response is right where its length is
even, so that random models learn something). Results: reproduce/results/architectures.json, and the table beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from steer_core.cli.ending import end
from steer_core.common.environment import environment
from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import write_atomically
from steer_core.common.places import EMBEDDED
from steer_core.config.config import Config, load_config
from steer_core.ladder.passes import Lens, check_ladder, derivative, gradient, length, lens_stats
from steer_core.policy.model import load_policy, load_tokenizer, persistent_buffers
from steer_core.policy.preflight import check_sampling, check_scores, ragged_pair
from steer_core.rewards.base import Verdict
from steer_core.runs.folder import RunFolder
from steer_core.training.loop import Trainer

RESULTS = Path(__file__).parent / "results"
SHAPE = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
RANDOM = {
    "attention_dropout": 0.1, "hidden_dropout": 0.1, "dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1,
    "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "layerdrop": 0.1, "router_jitter_noise": 0.1,
}  # fmt: skip
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = GROUPS | {
    "num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8,
    "q_lora_rank": 8,
}  # fmt: skip
STATES = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EIGHT = {"head_dim": 8}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {
        "qwen2": {}, "qwen3": EIGHT, "llama": {}, "mistral": {"sliding_window": 8}, "ministral3": EIGHT, "phi": {},
        "phi3": {}, "gemma": EIGHT, "gemma2": EIGHT | {"sliding_window": 8}, "gemma3_text": EIGHT,
        "gemma4_text": EIGHT | {
            "vocab_size_per_layer_input": 32, "hidden_size_per_layer_input": 8, "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "granite": {}, "cohere": {}, "cohere2": EIGHT, "olmo": {}, "olmo2": {}, "olmo3": {}, "stablelm": {},
        "starcoder2": {}, "falcon": {}, "gpt2": {}, "gpt_neox": {}, "gptj": {"rotary_dim": 8}, "gpt_bigcode": {},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "bloom": {}, "mpt": {"max_seq_len": 128}, "glm4": EIGHT,
        "smollm3": {}, "exaone4": {"layer_types": ["sliding_attention", "full_attention"]}, "nemotron": {},
        "apertus": {}, "ernie4_5": EIGHT, "hunyuan_v1_dense": EIGHT, "xglm": {"ffn_dim": 48},
        "biogpt": {},
    },
    "mixture of experts": {
        "mixtral": {}, "qwen2_moe": {}, "qwen3_moe": EIGHT, "olmoe": {}, "phimoe": {},
        "deepseek_v2": LATENT, "deepseek_v3": LATENT, "glm4_moe": EIGHT | GROUPS,
        "gpt_oss": EIGHT, "granitemoe": {}, "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
        "llama4_text": EIGHT | {"intermediate_size_mlp": 48}, "minimax_m2": EIGHT, "jetmoe": {"kv_channels": 8},
    },
    "hybrid or recurrent": {
        "bamba": STATES | {"attn_layer_indices": [1]},
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
        "falcon_h1": STATES | {"mamba_d_ssm": 64, "head_dim": 8},
        "granitemoehybrid": STATES | {"layer_types": ["mamba", "attention"]},
        "lfm2": {"layer_types": ["conv", "full_attention"]},
        "qwen3_next": LINEAR, "qwen3_5_text": LINEAR,
        "minimax": EIGHT | {"layer_types": ["linear_attention", "full_attention"]},
        "mamba": {"state_size": 8}, "rwkv": {"attention_hidden_size": 32},
    },
    "multimodal": {
        "gemma3": {"vision_config": VISION | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
        "llava": {"vision_config": VISION | {"model_type": "clip_vision_model"}},
    },
    "not causal": {"bert": {}, "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}},
}  # fmt: skip
"""By group, what each architecture (`model_type`) has beside or in place of the common shape."""
TEXT = {"gemma3": "gemma3_text", "llava": "llama"}
"""The language models within multimodal ones."""
SETTINGS = (
    "rollout.prompts=2", "rollout.responses=4", "rollout.max_new_tokens=8", "optimizer.mini_batch_prompts=1",
    "optimizer.learning_rate=1e-3", "evaluation.every=0", "evaluation.problems=2", "evaluation.max_new_tokens=8",
    "task.train_problems=8", "train.rollouts=2", "train.checkpoint_every=1", "train.probe_sequences=0",
    "intervention.name=steer",
)  # fmt: skip
CHECKS = ("loads", "samples", "trains", "checkpoint", "resumes", "estimates", "recompute", "packed")


def config_of(kind: str) -> Any:
    """The tiny configuration of an architecture, its dropout and jitter on."""
    own = next(group[kind] for group in KINDS.values() if kind in group)
    if kind in TEXT:
        text = SHAPE | EIGHT | {"model_type": TEXT[kind]}
        return AutoConfig.for_model(kind, text_config=text, image_token_index=40, image_token_id=40, **own)
    return AutoConfig.for_model(kind, **(SHAPE | EXPERTS | RANDOM | own))


def make_folder(kind: str, folder: Path) -> Path:
    """A folder with a random model of an architecture and the embedded model's tokenizer."""
    torch.manual_seed(0)
    makers = {"llava": AutoModelForImageTextToText, "t5": AutoModelForSeq2SeqLM}
    model = makers.get(kind, AutoModelForCausalLM).from_config(config_of(kind))
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)  # a router of zeros, which chooses by ties
    for _, buffer in persistent_buffers(model):
        if buffer.is_floating_point() and kind != "minimax":  # whose decays follow from one another
            buffer.mul_(0.5) if buffer.any() else buffer.add_(0.01)  # not what the class itself puts there
    model.save_pretrained(folder)
    load_tokenizer(str(EMBEDDED)).save_pretrained(folder)
    return folder


def trainer_of(config: Config, run: RunFolder | None = None) -> Trainer:
    """A trainer for which a response is right where its length is even."""
    trainer = Trainer(config, run)

    def grade(references: list[str], texts: list[str]) -> list[Verdict]:
        return [Verdict("right" if len(text) % 2 == 0 else "wrong") for text in texts]

    trainer.task.grader = SimpleNamespace(name="even length", grade=grade)
    return trainer


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that a checkpoint must hold."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two models' tensors are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


class Examination:
    """The checks of one architecture in a folder; each returns True, or False where it ran and was wrong."""

    def __init__(self, kind: str, folder: Path, settings: tuple[str, ...] = ()) -> None:
        self.model = str(make_folder(kind, folder / "model"))
        self.config = load_config(None, [*SETTINGS, *settings, f"model.path={self.model}"])
        self.run = folder / "run"

    def loads(self) -> bool:
        """Loads, and its log-probs are those of one causal policy."""
        self.policy = load_policy(self.model)
        self.name = type(self.policy.model).__name__
        check_scores(self.policy.model, ragged_pair(self.policy))
        return True

    def samples(self) -> bool:
        """Generating with a cache draws from the distribution that is scored."""
        check_sampling(self.policy.model, ragged_pair(self.policy))
        return True

    def trains(self) -> bool:
        """Two rollouts move the weights."""
        before = weights_of(self.policy.model)
        self.trainer = trainer_of(self.config, RunFolder(self.run, self.config).start())
        self.trainer.fit()
        self.rows = self.rows_of(self.trainer)
        return not same(weights_of(self.trainer.model), before) and any(row["grad_norm/max"] > 0 for row in self.rows)

    @torch.no_grad()
    def checkpoint(self) -> bool:
        """Plain transformers loads the checkpoint, tensor by tensor and in its logits the trainer's model."""
        plain, info = AutoModelForCausalLM.from_pretrained(
            self.run / "checkpoints" / "step_000002", output_loading_info=True
        )
        ids = torch.arange(3, 15)[None]
        logits = [model.eval()(input_ids=ids).logits for model in (plain, self.trainer.model)]
        close = torch.allclose(*logits, rtol=0, atol=1e-5)
        return close and same(weights_of(plain), weights_of(self.trainer.model)) and not any(info.values())

    def resumes(self) -> bool:
        """Gone on with from its first rollout, the run is the same bit for bit."""
        whole = weights_of(self.trainer.model)
        again = trainer_of(self.config, RunFolder.open(self.run))
        again.resume(from_step=1)
        again.fit()
        return same(weights_of(again.model), whole) and self.rows_of(again) == self.rows

    def estimates(self) -> bool:
        """The ladder's first-order change of entropy is the measured one, in float64 to 1e-4."""
        policy = load_policy(self.model, dtype="float64")
        pair = ragged_pair(policy)
        check_scores(policy.model, pair)
        check_ladder(policy.model, pair)
        lens = Lens(policy.model, pair)
        direction = gradient(lens, on_entropy_N=torch.ones_like(lens.labels_N, dtype=torch.float64))
        size = 1e-6 / length(direction)
        _, expected = derivative(lens, direction)
        ends = []
        for step in (size, -2 * size):
            with torch.no_grad():
                for name, parameter in lens.parameters().items():
                    parameter.add_(direction[name], alpha=step)
            ends.append(lens_stats(lens).entropy)
        measured = (ends[0] - ends[1]) / (2 * size)
        return float((measured - expected).norm() / measured.norm()) < 1e-4

    def recompute(self) -> bool:
        """Activations recomputed in the backward pass give the same step."""
        return self.first_step("engine.activations=recompute")

    def packed(self) -> bool:
        """Sequences behind one another in a row give the same step."""
        return self.first_step("optimizer.packing=packed", "optimizer.micro_batch_tokens=64")

    def first_step(self, *settings: str) -> bool:
        """Whether other settings give the first rollout's loss and gradient, to 0.1%."""
        config = load_config(None, [*SETTINGS, f"model.path={self.model}", "train.rollouts=1", *settings])
        trainer = trainer_of(config)
        trainer.fit()
        (row,) = self.rows_of(trainer)
        names = ("grad_norm/mean", "entropy/policy")
        return all(abs(row[name] - self.rows[0][name]) <= 1e-3 * self.rows[0][name] for name in names)

    @staticmethod
    def rows_of(trainer: Trainer) -> list[dict[str, Any]]:
        """The log without clock readings."""
        rows = trainer.run.read("metrics.jsonl")
        return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def outcome(check: Callable[[], bool]) -> str:
    """`yes`, `WRONG`, `refused: ` with the line that a user reads, or `FAILS: ` with what was not caught."""
    try:
        return "yes" if check() else "WRONG"
    except SteerError as error:
        return f"refused: {error}"
    except Exception as error:  # the table is to show what a user would meet as a traceback
        return f"FAILS: {type(error).__name__}: {one_line(error, 200)}"


def examine(kind: str, folder: Path, checks: tuple[str, ...] = CHECKS) -> dict[str, str]:
    """What each check of an architecture came to; without loading or training, the later ones are left out."""
    found, done = Examination(kind, folder), {}
    for name in checks:
        done[name] = outcome(getattr(found, name)).replace(str(folder), "FOLDER")
        if done[name] != "yes" and name in ("loads", "samples", "trains"):
            break
    return {"class": getattr(found, "name", config_of(kind).model_type), **done}


def page(results: dict[str, dict[str, str]], about: dict[str, Any]) -> str:
    """The results as Markdown."""
    refusals: list[str] = []

    def cell(text: str) -> str:
        kind, _, line = text.partition(": ")
        if not line:
            return kind
        if line not in refusals:
            refusals.append(line)
        return f"{kind} [{refusals.index(line) + 1}]"

    groups = []
    for group, kinds in KINDS.items():
        rows = [(kind, results[kind]) for kind in kinds if kind in results]
        cells = [[f"`{kind}`", row["class"], *(cell(row.get(name, "-")) for name in CHECKS)] for kind, row in rows]
        groups += ["", f"## {group[0].upper()}{group[1:]}", "", "| model_type | class | " + " | ".join(CHECKS) + " |"]
        groups += ["| --- " * (2 + len(CHECKS)) + "|", *("| " + " | ".join(line) + " |" for line in cells)]
    whole = sum(all(row.get(name) == "yes" for name in CHECKS) for row in results.values())
    packages = about["packages"]
    lines = [
        "# Which Hugging Face models work",
        "",
        f"`{about['command']}`, transformers {packages['transformers']}, torch {packages['torch']}, "
        f"{about['date'][:10]}: {len(results)}",
        f"architectures, tiny and random, each with dropout or jitter in its configuration; {whole} do all of it.",
        "A refusal comes before anything is sampled, on one line, and its text stands below.",
        "",
        *(f"- {name}: {getattr(Examination, name).__doc__}" for name in CHECKS),
        *groups,
        "",
        *(f"{number}. {line}" for number, line in enumerate(refusals, 1)),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Examine what is not there yet, one architecture after another; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everyone = [kind for kinds in KINDS.values() for kind in kinds]
    parser.add_argument("--only", nargs="+", choices=everyone, metavar="MODEL_TYPE", help="these architectures alone")
    parser.add_argument("--again", action="store_true", help="examine anew what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table (default: beside this file)")
    args = parser.parse_args()
    file = args.results / "architectures.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"results": {}}
    for kind in args.only or everyone:
        if kind in record["results"] and not args.again:
            continue
        with tempfile.TemporaryDirectory() as folder:
            record["results"][kind] = examine(kind, Path(folder))
        record["environment"] = environment() | {"command": "python reproduce/architectures.py"}
        print(kind, record["results"][kind], flush=True)
        args.results.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(record, indent=1) + "\n")
    (args.results / "architectures.md").write_text(page(record["results"], record["environment"]), encoding="utf-8")
    print(page(record["results"], record["environment"]))


if __name__ == "__main__":
    end(main)
