"""For every test: one thread a process, the same hypothesis examples each time, the shapes of `formulas` checked."""

import os

# Threads that wait by spinning slow down whatever runs beside them, fifty-fold at the worst. Set before torch is
# imported, and inherited by every process that a test starts.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

import jaxtyping
import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")

jaxtyping.install_import_hook("steer_core.formulas", "beartype.beartype")


def pytest_collection_modifyitems(items):
    """What takes longest goes first, so that no core is left waiting for it at the end."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.get_closest_marker("slow") is None)


@pytest.fixture
def unchecked_shapes():
    """For tests of what a user meets, who has no such checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
