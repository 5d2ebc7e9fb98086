"""What the training engine holds of weights, gradients, optimiser and buffers, at each moment of a step.

Read from DeepSpeed 0.19's code with the settings of `engines/zero.py`: a bfloat16 model's gradients are summed in
float32, over ranks at every stage and over micro-batches from stage 1 on. In bytes. P: parameters, n: ranks, e: bytes
of a number in model.dtype, b: parameters of the largest matrix, B: elements of a bucket, L: of the largest reduction
(a bucket, or a matrix that is larger).

A model that fits a bucket is reduced after the backward pass, not in it. What is given up after a step is free in the
rollout, for vLLM empties PyTorch's cache as it wakes. Reductions are counted beside the logits' statistics, which they
follow: an upper bound. Not counted: what PyTorch rounds page-locked host memory up by, and copies of a rank's share of
one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from steer_core.config.config import Config
from steer_core.planner.shapes import Shape

BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
ROLLOUT, BACKWARD, STEP = "rollout", "backward pass", "optimiser step"
"""The moments. The last begins where the last backward pass ends: what is still to be reduced belongs to it."""
LIVE = 10**9
"""Parameters that ZeRO-3 keeps gathered at most (stage3_max_live_parameters)."""
SUB_GROUP = 10**9
"""Parameters that ZeRO-3's optimiser takes at a time (sub_group_size)."""
BUCKET = 5 * 10**8
"""Elements of DeepSpeed's bucket for reducing (reduce_bucket_size), which is there whole on a GPU."""

Parts = dict[str, dict[str, float]]
"""{moment: {part: bytes}}"""


@dataclass(frozen=True)
class Elements:
    """Numbers of elements, see above: P, P / n, b, B as far as it is there, L; ranks n; on_cpu as in `Machine`."""

    whole: float
    own: float
    largest: float
    bucket: float
    reduced: float
    ranks: int
    on_cpu: int

    @property
    def late(self) -> bool:
        """Whether all gradients wait in one bucket until the backward pass has ended."""
        return self.whole <= BUCKET

    @property
    def norm(self) -> float:
        """Bytes of the largest matrix in the rank's share as float64, from which its norm is taken."""
        return 8 * min(self.largest, self.own)


def elements(shape: Shape, ranks: int, on_cpu: int = 0) -> Elements:
    """The numbers of elements for a model; untouched memory is free on a CPU, so a bucket is what lies in it."""
    whole, largest = shape.parameters, max(shape.head, shape.hidden * shape.intermediate)
    reduced, bucket = min(whole, max(BUCKET, largest)), min(whole, BUCKET) if on_cpu else BUCKET
    return Elements(whole, whole / ranks, largest, bucket, reduced, ranks, on_cpu)


def states(config: Config, shape: Shape, ranks: int, on_cpu: int = 0) -> Parts:
    """Weights, gradients, optimiser, buffers and the step's copies at every moment."""
    return {
        moment: {
            "weights": weights(config, shape, ranks),
            "gathered weights": gathered(config, shape, moment),
            "optimiser": optimiser(config, shape, ranks),
            **parts,
        }
        for moment, parts in gradients_and_buffers(config, elements(shape, ranks, on_cpu)).items()
    }


def is_zero(config: Config, stage: int = 0) -> bool:
    """Whether the engine is DeepSpeed's at a stage or a higher one."""
    return config.engine.name == "deepspeed" and config.engine.zero_stage >= stage


def offloads(config: Config) -> bool:
    """Whether the optimiser's numbers lie on the host."""
    return is_zero(config) and config.engine.offload != "none"


def moment_bytes(config: Config) -> int:
    """Bytes a parameter of the optimiser's moments: two for Adam, one for SGD with momentum."""
    numbers = (1 if config.optimizer.momentum else 0) if config.optimizer.name == "sgd" else 2
    return numbers * (8 if config.model.dtype == "float64" else 4)


def master_bytes(config: Config) -> int:
    """Bytes a parameter of the float32 weights that DeepSpeed's optimiser keeps beside the model's."""
    return 4 if is_zero(config) and (config.engine.zero_stage or config.model.dtype == "bfloat16") else 0


def weights(config: Config, shape: Shape, ranks: int) -> float:
    """The trained model's weights: e P, or under ZeRO-3 the rank's share, e P / n, none where they are offloaded."""
    if config.engine.offload == "all":
        return 0.0
    return BYTES[config.model.dtype] * shape.parameters / (ranks if is_zero(config, 3) else 1)


def gathered(config: Config, shape: Shape, moment: str) -> float:
    """The weights that ZeRO-3 gathers at a time: e LIVE at most, in passes of the model, `generate`'s among them."""
    if not is_zero(config, 3) or moment == STEP or (moment == ROLLOUT and config.rollout.engine == "vllm"):
        return 0.0
    return BYTES[config.model.dtype] * min(shape.parameters, LIVE)


def optimiser(config: Config, shape: Shape, ranks: int) -> float:
    """Moments and float32 weights on the GPU: up to 12 P, over n from ZeRO-1 on, none where offloaded."""
    if offloads(config):
        return 0.0
    return (moment_bytes(config) + master_bytes(config)) * shape.parameters / (ranks if is_zero(config, 1) else 1)


def adam(config: Config, updated: float, size: int = 4) -> float:
    """What the optimiser's update of some elements needs for a moment, none without moments or for CPUAdam.

    One copy of all of them, the root of the second moment: AdamW is told to take its tensors together (foreach).
    """
    return size * updated if moment_bytes(config) and config.optimizer.name != "cpu-adam" else 0.0


def gradients_and_buffers(config: Config, here: Elements) -> Parts:
    """Gradients, buffers and the step's copies at every moment, by the engine and its stage."""
    if not is_zero(config, 1):
        return unshared(config, here)
    if config.engine.zero_stage == 1 and config.model.dtype == "bfloat16" and not offloads(config):
        return stage_1_bfloat16(config, here)
    return {1: stage_1, 2: stage_2, 3: stage_3}[config.engine.zero_stage](config, here)


def _parts(gradients: tuple[float, float, float], buffers: tuple[float, float, float], copies: float) -> Parts:
    """Gradients and buffers in the rollout, the backward pass and the optimiser step, and the step's copies."""
    found = {
        moment: {"gradients": held, "buffers": buffer}
        for moment, held, buffer in zip((ROLLOUT, BACKWARD, STEP), gradients, buffers, strict=True)
    }
    found[STEP]["step's copies"] = copies
    return found


def unshared(config: Config, here: Elements) -> Parts:
    """The local engine and ZeRO-0: gradients in the model's precision, e P, given up after the step.

    The local engine adds up ranks in place. ZeRO-0 flattens gradients of B + b elements, and once more in float32 where
    they are bfloat16; then FP16_UnfusedOptimizer takes all of those in float32 for the step, 4 P.
    """
    size, bfloat = BYTES[config.model.dtype], config.model.dtype == "bfloat16"
    held = size * here.whole
    if not is_zero(config):
        return _parts((0, held, held), (0, 0, 0), adam(config, here.whole, size))
    reduced = (size + 4 * bfloat) * min(here.whole, BUCKET + here.largest)
    update = 4 * bfloat * here.whole + adam(config, here.whole)
    return _parts((0, held, held), (0, 0, 0), max(reduced, update))


def stage_1_bfloat16(config: Config, here: Elements) -> Parts:
    """BF16_Optimizer: 4 P on every rank, always, reduced in place; a new gradient is added as float32, 4 b."""
    held = 4 * here.whole
    return _parts((held, held, held), (0, 4 * here.largest, 0), adam(config, here.own))


def stage_1(config: Config, here: Elements) -> Parts:
    """ZeRO-1 of a float32 model, or with offload: 4 P on every rank until the last backward pass has ended.

    Then a bucket at a time is flattened and reduced, and the rank's share, 4 P / n, copied out of it: bfloat16 into one
    float32 buffer, which is there beside the flattened bucket, float32 as it is where it is offloaded. The bucket
    itself, 4 B, is there from the first gradient on, empty until then.
    """
    bfloat, offloaded = config.model.dtype == "bfloat16", offloads(config)
    share = 0.0 if offloaded and not bfloat else 4 * here.own
    waits = (0 if here.on_cpu else 4 * here.bucket) + 4 * bfloat * here.largest
    spare = swap(config, here)
    flat = 4 * here.reduced if bfloat or here.ranks > 1 else 0.0
    reducing = 4 * max(here.whole, here.bucket) + (flat if offloaded else max(flat - share, 0.0))
    update = 0.0 if offloaded else max(share, here.norm, adam(config, here.own))
    return _parts((0, 4 * here.whole, share), (spare, spare + waits, spare), max(reducing, update))


def stage_2(config: Config, here: Elements) -> Parts:
    """ZeRO-2: the rank's share of the sum so far, 4 P / n, given up after the step, and the bucket, e B.

    A bucket is reduced as it is full. bfloat16: flattened, then as float32, (2 + 4) L, and added to the share, which
    stays on the GPU until the step even where the optimiser is offloaded. float32: flattened, 4 L where there are
    several ranks, copied into a second share, and added; offloaded, shares are on the host. The step flattens a
    float32 share anew, 4 P / n, before its update; the norm is taken in float64.
    """
    size, bfloat, offloaded = BYTES[config.model.dtype], config.model.dtype == "bfloat16", offloads(config)
    share = 0.0 if offloaded and not bfloat else 4 * here.own
    second = 0.0 if bfloat or offloaded else 4 * here.own
    flat = (size + 4 * bfloat) * here.reduced if bfloat or here.ranks > 1 else 0.0
    reducing = max(flat, here.norm if offloaded else 0.0) + second
    bucket, spare = size * here.bucket, swap(config, here)
    update = 0.0 if offloaded else max(second, here.norm, adam(config, here.own))
    backward, copies = (0.0, bucket + reducing) if here.late else (reducing, 0.0)
    return _parts((0, share, share), (spare, spare + bucket + backward, spare), max(copies, update))


def stage_3(config: Config, here: Elements) -> Parts:
    """ZeRO-3: the rank's share, 4 P / n, and a bucket, 4 B, always; the share on the host where offloaded.

    A full bucket is put in the ranks' order, 4 L, and reduced. The step flattens SUB_GROUP parameters' gradients at a
    time before their update.
    """
    offloaded, together = offloads(config), min(here.own, SUB_GROUP)
    share, bucket, reducing = 0.0 if offloaded else 4 * here.own, 4 * here.bucket, 4 * here.reduced
    update = 0.0 if offloaded else 4 * together + adam(config, together)
    backward, copies = (0.0, reducing) if here.late else (reducing, 0.0)
    return _parts((share, share, share), (bucket, bucket + backward, bucket), max(copies, update))


def swap(config: Config, here: Elements) -> float:
    """The buffer through which ZeRO-1 and 2 fetch a gradient from the host, e b, where they offload."""
    return BYTES[config.model.dtype] * here.largest if offloads(config) else 0.0


def host_states(config: Config, shape: Shape, ranks: int, gpus: int) -> dict[str, float]:
    """A node's host memory for what is offloaded, {} where nothing is; gpus: ranks on the node.

    For every parameter of a rank's share: moments, float32 weights and gradients, up to 16. ZeRO-1 and 2: the new
    weights on their way, e, a buffer of the largest matrix, and in float32 ZeRO-2 its sum over micro-batches, 4.
    ZeRO-3: that sum, 4. And what the update copies.
    """
    if not offloads(config):
        return {}
    size, stage = BYTES[config.model.dtype], config.engine.zero_stage
    here = elements(shape, ranks, on_cpu=1)
    held = here.own * (moment_bytes(config) + master_bytes(config) + 4)
    summed = 4 * here.own if stage == 3 or (stage == 2 and config.model.dtype == "float32") else 0.0
    on_the_way = 0.0 if stage == 3 else size * (here.own + here.largest)
    together = min(here.own, SUB_GROUP) if stage == 3 else here.own
    copies = adam(config, together)
    parts = {"optimiser": held, "gradients": summed, "buffers": on_the_way, "step's copies": copies}
    if config.engine.offload == "all":
        parts["weights"] = size * here.own
    return {part: gpus * held for part, held in parts.items() if held}
