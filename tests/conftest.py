"""For every test: the same hypothesis examples on every run, and the shapes in the signatures of `formulas` checked."""

import jaxtyping
import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")

jaxtyping.install_import_hook("steer_core.formulas", "beartype.beartype")


@pytest.fixture
def unchecked_shapes():
    """For tests of what a user meets, who has no such checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
