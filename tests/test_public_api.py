"""The public names of the package: each is there, importing them costs nothing, and checkers see them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import steer_core


@pytest.mark.parametrize("name", steer_core.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    assert not isinstance(getattr(steer_core, name), type(sys))


def test_dir_lists_the_public_names_and_the_table_the_same():
    assert sorted(dir(steer_core)) == sorted(steer_core.__all__) == sorted(["__version__", *steer_core._PLACES])


def test_no_public_name_is_a_folder_or_file_of_the_package_for_its_import_would_take_the_name():
    modules = {path.stem for path in Path(steer_core.__file__).parent.iterdir()}
    assert not modules & set(steer_core.__all__)


def test_importing_the_package_imports_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import steer_core; dir(steer_core); steer_core.__version__\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*new - {'steer_core'} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'steer_core' has no attribute 'entropy_chnge'"):
        _ = steer_core.entropy_chnge


def test_what_type_checkers_read_is_the_table():
    tree = ast.parse(Path(steer_core.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.asname or alias.name: f"{node.module.removeprefix('steer_core.')}:{alias.name}"
        for node in block.body
        for alias in node.names
    }
    assert read == steer_core._PLACES
