"""The package itself: its stubs, and what it links."""

import ast
import inspect
import pathlib
import subprocess

import elf_flows
import pytest
from elf_flows import _native

PACKAGE = pathlib.Path(elf_flows.__file__).parent


def stubs():
    """Functions and methods of the stubs: a name, its node, and the object that it stands for."""
    for node in ast.parse((PACKAGE / "_native.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node, getattr(_native, node.name)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):
                    yield f"{node.name}.{member.name}", member, getattr(getattr(_native, node.name), member.name)


def test_stubs_are_of_what_is_there():
    assert (PACKAGE / "py.typed").is_file()
    names = [name for name, _, _ in stubs()]
    assert {"load", "train", "Model.generate", "Model.denoise"} <= set(names)
    for name, node, native in stubs():
        assert ast.get_docstring(node) == inspect.getdoc(native) or name.startswith("Trajectory"), name
        if isinstance(node, ast.FunctionDef) and callable(native):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            named = [argument.arg for argument in arguments]
            named += [extra.arg for extra in [node.args.vararg, node.args.kwarg] if extra]
            assert named == list(inspect.signature(native).parameters), name
    public = {name for name in dir(_native) if not name.startswith("_")}
    constants = {"TRAJECTORY_SCRIPT", "TRAJECTORY_STYLE"}
    assert public - constants == {name for name in names if "." not in name}


def test_libtorch_is_that_of_torch():
    (library,) = PACKAGE.glob("_native*.so")
    assert "abi3" in library.name
    assert library.stat().st_size < 200e6, "libtorch is not in the wheel"
    try:
        section = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("readelf of binutils is not there")
    assert "libtorch_cpu.so" in section and "libpython" not in section
    with open("/proc/self/maps", encoding="utf-8") as maps:
        loaded = {line.split()[-1] for line in maps if line.rstrip().endswith("libtorch_cpu.so")}
    import torch

    assert loaded == {str(pathlib.Path(torch.__file__).resolve().parent / "lib/libtorch_cpu.so")}


def test_the_version_is_that_of_the_workspace():
    manifest = (pathlib.Path(__file__).resolve().parents[2] / "Cargo.toml").read_text(encoding="utf-8")
    import importlib.metadata

    assert f'version = "{importlib.metadata.version("elf-flows")}"' in manifest
