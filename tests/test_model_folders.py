"""What a model folder must be: weights that are hashed are those that load, no code runs, no randomness comes along."""

import json
import os
import shlex
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, MixtralConfig, Starcoder2Config

from steer_core.common.errors import SteerError
from steer_core.evaluation.problem_sets import context_of
from steer_core.policy.folder import UNLIMITED, positions_of, without_randomness
from steer_core.policy.model import EMBEDDED, base_digest, load_model, load_policy, load_tokenizer
from steer_core.policy.preflight import check_policy
from steer_core.policy.tokenizer import check_tokenizer

PLANTED = "import pathlib\npathlib.Path(__file__).with_name('planted').touch()\nclass Own: pass\n"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def edit(path, **changes):
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | changes))


def refusal(folder, load=load_policy) -> str:
    with pytest.raises(SteerError) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pickled(folder):
    """The folder with its weights as pytorch_model.bin alone."""
    torch.save(load_model(str(folder), torch.float32).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_weights_in_a_pickle_are_neither_loaded_nor_hashed(folder):
    pickled(folder)
    for load in (load_policy, base_digest):
        assert "pytorch_model.bin, and only model.safetensors" in refusal(folder, load)


def test_the_command_that_a_pickles_refusal_names_converts_it(folder):
    before = load_policy(str(EMBEDDED)).model.state_dict()
    python, option, program = shlex.split(refusal(pickled(folder)).split("convert it: ")[1])
    assert (python, option) == ("python", "-c")
    exec(program, {})
    after = load_policy(str(folder)).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_pickle_beside_safetensors_is_not_what_loads(folder):
    digest, before = base_digest(str(folder)), load_policy(str(folder)).model.state_dict()
    torch.save({name: value + 1 for name, value in before.items()}, folder / "pytorch_model.bin")
    after = load_policy(str(folder)).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert base_digest(str(folder)) == digest


@pytest.mark.parametrize("name", ["weights.gguf", "tf_model.h5", "consolidated.00.pth", "weights.safetensors"])
def test_weights_of_another_kind_are_named(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    assert f"holds its weights as {name}" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no weights (model.safetensors)" in refusal(folder)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, "model-2.safetensors.*is not there"),
        ({"weight_map": {"a": "../model-1.safetensors"}}, r"\.\./model-1.safetensors.*no safetensors file beside it"),
        ({"weight_map": {"a": "pytorch_model-1.bin"}}, "pytorch_model-1.bin.*is no safetensors file"),
        ({"weight_map": {}}, "names no file"),
        ({"weight_map": ["a"]}, "weight_map names no files"),
        ([], "no object"),
        ({"weight_map": {"a": 3}}, "weight_map names no files"),
    ],
)
def test_an_index_that_names_other_files_than_those_beside_it_is_refused(folder, held, said):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(held))
    for load in (load_policy, base_digest):
        with pytest.raises(SteerError, match=said):
            load(str(folder))


def test_weights_in_parts_load_and_are_hashed(folder):
    whole = load_policy(str(folder)).model
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert all(
        torch.equal(value, whole.state_dict()[name])
        for name, value in load_policy(str(folder)).model.state_dict().items()
    )
    digest = base_digest(str(folder))
    next(folder.glob("model-*.safetensors")).write_bytes(b"other")
    assert base_digest(str(folder)) != digest


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(EMBEDDED)}))
    assert "holds an adapter, not a model; merge it" in refusal(folder)


@pytest.mark.parametrize("kind", ["own", "qwen2"])
def test_code_that_comes_with_a_folder_is_never_run_nor_asked_about(folder, kind, monkeypatch):
    """A terminal that would say yes to whatever is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "own.py").write_text(PLANTED)
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    edit(folder / "config.json", model_type=kind, auto_map=classes)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]})
    if kind == "qwen2":  # an architecture of transformers: its own class is taken
        assert type(load_policy(str(folder)).model).__module__.startswith("transformers.")
    else:
        assert "is of the architecture 'own', whose code comes with the folder and is not run" in refusal(folder)
        assert "whose code comes with the folder" in refusal(folder, context_of)
    load_tokenizer(str(folder))
    assert not list(folder.rglob("planted"))


@pytest.mark.parametrize("held", ["[]", "3", "null", '"qwen2"', "{}", '{"model_type": 3}', "{", "\x00", ""])
@pytest.mark.parametrize("load", [load_policy, context_of])
def test_a_configuration_of_another_shape_is_told_on_one_line(folder, held, load):
    (folder / "config.json").write_text(held)
    assert "config.json" in refusal(folder, load)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "many"}, {"num_hidden_layers": None}, {"vocab_size": [3]}, {"model_type": "unheard-of"}]
)
def test_settings_of_a_configuration_that_no_model_has_are_told_on_one_line(folder, changes):
    edit(folder / "config.json", **changes)
    assert str(folder) in refusal(folder)


def test_quantised_weights_are_refused(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantization_config in its config.json" in refusal(folder)


def test_a_kernel_that_a_folder_names_is_not_fetched(folder):
    edit(folder / "config.json", attn_implementation="someone/kernel")
    assert load_policy(str(folder)).model.config._attn_implementation == "sdpa"


def test_a_token_beyond_the_models_vocabulary_is_named(folder):
    held = json.loads((folder / "tokenizer.json").read_text())
    held["model"]["vocab"]["<far>"] = 40
    del held["model"]["vocab"]["9"]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= 20
    with pytest.raises(SteerError, match=r"gives '<far>' the id 40 and the model embeds 20 ids"):
        check_tokenizer(tokenizer, 20)
    assert "'<far>' the id 40" in refusal(folder)


def test_every_rate_of_dropout_and_jitter_is_0_before_a_model_is_built():
    star = Starcoder2Config(residual_dropout=0.1, embedding_dropout=0.2, attention_dropout=0.3, sliding_window=7)
    nested = AutoConfig.for_model("gemma3", text_config={"attention_dropout": 0.1, "sliding_window": 5})
    experts = MixtralConfig(router_jitter_noise=0.4, router_aux_loss_coef=0.02)
    for config in (star, nested, experts):
        without_randomness(config)
    assert (star.residual_dropout, star.embedding_dropout, star.attention_dropout) == (0, 0, 0)
    assert (star.sliding_window, experts.router_aux_loss_coef, nested.text_config.sliding_window) == (7, 0.02, 5)
    assert experts.router_jitter_noise == nested.text_config.attention_dropout == 0


def test_positions_are_the_language_models_own_or_without_limit():
    text = {"max_position_embeddings": 77, "model_type": "gemma3_text"}
    assert positions_of(AutoConfig.for_model("gemma3", text_config=text)) == 77
    assert positions_of(AutoConfig.for_model("gpt2", n_positions=33)) == 33
    assert positions_of(AutoConfig.for_model("mpt", max_seq_len=55)) == 55
    assert positions_of(AutoConfig.for_model("bloom")) == UNLIMITED


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"[" * 100_000, "{}".encode("utf-16"), b"null", b"\0"])
def test_a_damaged_file_of_a_model_folder_is_told_on_one_line(folder, name, data):
    (folder / name).write_bytes(data)
    assert refusal(folder).startswith("model.path: ")


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors", "chat_template.jinja"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_a_file_that_a_loader_would_wait_at_or_not_find_is_named(folder, name, make):
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    for load in (load_policy, base_digest, load_tokenizer):
        assert f"{name} is no regular file, or a link to nothing" in refusal(folder, load)


def test_a_folder_in_the_weights_place_holds_no_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "holds no weights (model.safetensors)" in refusal(folder)


def test_a_folder_without_its_vocabulary_is_told_so(folder):
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer knows no token but special ones: its tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("number", [-1, 1 << 31, 10**30, True, 1.5, "1", [1, "x"], [[1]], {}])
def test_an_end_token_that_is_no_token_id_is_refused_by_name(folder, number):
    edit(folder / "generation_config.json", eos_token_id=number)
    assert f"generation_config.json: eos_token_id: {number!r} is no token id" in refusal(folder)


def test_an_end_token_outside_the_vocabulary_harms_nothing(folder):
    edit(folder / "generation_config.json", eos_token_id=[1, 500])
    assert load_policy(str(folder)).end_tokens == [1, 500]


def test_a_model_without_positions_is_refused_before_it_is_tried(folder):
    edit(folder / "config.json", max_position_embeddings=0)
    assert "gives the model 0 positions" in refusal(folder, lambda path: check_policy(load_policy(path)))


def test_weights_that_do_not_fit_are_told_by_one_line_alone(folder, capfd):
    edit(folder / "config.json", tie_word_embeddings=False)
    assert "(1, such as lm_head.weight)" in refusal(folder)
    assert capfd.readouterr() == ("", "")
