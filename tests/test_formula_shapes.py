"""Every public formula says the shapes of its tensors, and while tests run they are checked."""

import inspect
import re
from importlib import import_module

import jaxtyping
import pytest
import torch

from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.formulas.token_stats import TokenStats

MODULES = [
    import_module(f"steer_core.formulas.{name}")
    for name in ("token_stats", "linear_stats", "advantages", "entropy_change", "weights", "loss", "tabular")
]
FUNCTIONS = [
    function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_tensor_in_a_signature_names_its_axes(function):
    annotations = inspect.get_annotations(inspect.unwrap(function))
    parameters = inspect.signature(function).parameters
    assert annotations.keys() == {*parameters, "return"}
    for annotation in annotations.values():
        assert "Tensor" not in re.sub(r"\w+\[Tensor, [^]]*\]", "", str(annotation)), annotation


def test_a_shape_that_is_not_the_signatures_raises_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="old_logprob"):
        clipped_surrogate(torch.zeros(2), torch.zeros(3), torch.zeros(2), ClipRange())
    with pytest.raises(jaxtyping.TypeCheckError, match="sum_p2"):
        TokenStats(torch.zeros(2), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))
