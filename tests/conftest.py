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


SLOW = """two_nodes fuzz engines architectures kill kill_ranks smoke_runs vllm_engine vllm_training problem_sets readme
run_killed run cli cli_compare runner recorded_runs launcher accidents ending
integration_trl integration_verl everyday_answers grade
code_rewards workers sandbox_limits own_problem_sets invariance reproduce_estimators estimate
estimate_resume tournament paper_configs report report_run build_lock ladder real_step ladder_models
attribution parity_trl parity_verl recipes recipes_engines own_rewards own_page methods_in_trl methods_in_verl dump_trl
dump_verl diagnose_runs site lab play reproduce"""
"""Files, longest first, that start engines or processes, train many runs, draw reports or load many models."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is slow, and let the longest go first, so that no core is left waiting for it at the end."""
    order = {f"test_{name}": place for place, name in enumerate(SLOW.split())}
    for item in items:
        if item.path.stem in order or item.path.suffix == ".ipynb":
            item.add_marker("slow")
        if item.path.parent.name == "answers":
            item.add_marker("long")
    items.sort(key=lambda item: order.get(item.path.stem, 0 if item.path.suffix == ".ipynb" else len(order)))


@pytest.fixture
def unchecked_shapes():
    """For tests of what a user meets, who has no such checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
