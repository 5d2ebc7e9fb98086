"""`make notebooks`: its line starts JupyterLab, without a browser here, and it answers at the first notebook."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("jupyterlab")

ROOT = Path(__file__).parents[1]
WAIT = 400
"""Seconds for the server to come up on a busy machine."""


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def line(port: int) -> list[str]:
    """What `make notebooks` would run, with this Python's jupyter."""
    told = f"LAB=--no-browser --port {port} --allow-root --ServerApp.port_retries=0 --IdentityProvider.token=t"
    done = subprocess.run(["make", "-n", "notebooks", told], cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(next(row for row in done.stdout.splitlines() if " lab notebooks " in row))
    return [sys.executable, "-m", "jupyter", *words[1:]]


def answer(address: str) -> str:
    """What a server says, once it is up."""
    for _ in range(WAIT):
        try:
            with urlopen(address, timeout=5) as reply:
                return reply.read().decode()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise AssertionError(f"no answer from {address} in {WAIT} s")


@pytest.mark.slow
def test_make_notebooks_opens_jupyterlab_at_the_first_notebook(tmp_path):
    port = free_port()
    words = line(port)
    (place,) = [word.partition("=")[2] for word in words if word.startswith("--LabApp.default_url=")]
    first = min(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert place == f"/lab/tree/{first}"
    log = tmp_path / "log"
    with log.open("w") as out:
        environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
        server = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            assert "JupyterLab" in answer(f"http://127.0.0.1:{port}{place}?token=t")
            kept = answer(f"http://127.0.0.1:{port}/api/contents/{first}?content=0&token=t")
        finally:
            server.terminate()
            server.wait(30)
    assert f'"name": "{first}"' in re.sub(r'":\s*"', '": "', kept)
    assert place in log.read_text()  # the address that is printed is the notebook's
