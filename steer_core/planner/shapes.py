"""The shape of a language model, from its config.json or from a table of public models, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steer_core.common.errors import SteerError, nearest
from steer_core.common.files import read_json
from steer_core.common.places import EMBEDDED
from steer_core.common.settings import read_yaml
from steer_core.policy.smoke import SMOKE, smoke_model

TABLE = Path(__file__).parent / "shapes.yaml"
KNOWN_TYPES = ("qwen2", "llama")
"""Architectures whose parameters this module counts."""


@dataclass(frozen=True)
class Shape:
    """A decoder of Qwen2's or Llama's kind. tied: the output layer is the embedding; biased: biases on q, k and v."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int
    tied: int
    biased: int

    @property
    def query_width(self) -> int:
        """Features of all queries of a token."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Features of all keys (or values) of a token."""
        return self.kv_heads * self.head_size

    @property
    def layer_matrices(self) -> int:
        """Parameters in one layer's matrices: q and o, k and v, gate, up and down."""
        return self.hidden * (2 * self.query_width + 2 * self.kv_width + 3 * self.intermediate)

    @property
    def head(self) -> int:
        """Parameters of the output layer, which are the embedding's where tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters in all: embedding, output layer where it is another, layers with two norms, the last norm."""
        biases = (self.query_width + 2 * self.kv_width) * self.biased
        layer = self.layer_matrices + biases + 2 * self.hidden
        return self.head * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def kv_bytes(self, size: int) -> int:
        """Bytes of keys and values that a cache keeps of one token; size: bytes a number."""
        return 2 * self.layers * self.kv_width * size

    def forward_flops(self, tokens: float, responses: float, length: float) -> float:
        """Floating-point operations of a forward pass: 2 a parameter and token, and causal attention.

        tokens: that pass the layers. responses: those of them that need logits. length: mean tokens of a sequence;
        attention costs 2 x length x query width a token and layer (scores and sums, half of them masked).
        """
        layers = 2 * self.layer_matrices + 2 * length * self.query_width
        return tokens * self.layers * layers + responses * 2 * self.head


def shape_of(path: str) -> Shape:
    """The shape of the model that `model.path` names: `embedded`, `smoke`, a folder, or a public model by its name.

    Raises SteerError for a name that is neither on disk nor known, and for a model of another architecture.
    """
    if path == "embedded":
        return read_shape(EMBEDDED, path)
    if path == SMOKE:
        return read_shape(smoke_model(), path)
    if (Path(path) / "config.json").is_file():
        return read_shape(Path(path), path)
    table = known_shapes()
    names = {name: shape for whole, shape in table.items() for name in (whole, whole.split("/")[-1])}
    if path not in names:
        raise SteerError(
            f"model.path: {path!r} is no folder with a config.json and no model that `steer plan` knows; "
            f"{nearest(path, names if '/' not in path else table)}"
        )
    return names[path]


def known_shapes() -> dict[str, Shape]:
    """The public models by name."""
    return {name: Shape(name, *numbers) for name, numbers in read_yaml(TABLE).items()}


def read_shape(folder: Path, name: str) -> Shape:
    """The shape that a model folder's config.json gives. Raises SteerError for what it does not hold."""
    config = read_json(folder / "config.json", "model.path:", "save the model again")
    kind = config.get("model_type")
    if kind not in KNOWN_TYPES:
        raise SteerError(
            f"model.path: {name}: model_type {kind!r} is none that `steer plan` counts; use one of {KNOWN_TYPES}"
        )
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            name,
            config["num_hidden_layers"],
            hidden,
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
            config["intermediate_size"],
            config["vocab_size"],
            config["max_position_embeddings"],
            int(config.get("tie_word_embeddings", False)),
            int(kind == "qwen2"),
        )
    except KeyError as error:
        raise SteerError(f"model.path: {name}: config.json has no {error}; save the model again") from error
