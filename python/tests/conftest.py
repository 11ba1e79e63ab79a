"""What the tests share: models of the repository, and the program ``elf``."""

import json
import os
import pathlib
import subprocess

import elf_flows
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DE_EN = ROOT / "models/mini-de-en"  # Writes token by token, from an input.
AT_ONCE = ROOT / "models/definitions"  # Writes all tokens at once, without an input.
INFILL = ROOT / "models/infill"  # Fills gaps.


@pytest.fixture(scope="session")
def translator():
    with elf_flows.load(DE_EN, device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def writer():
    with elf_flows.load(AT_ONCE, device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def filler():
    with elf_flows.load(INFILL, device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def elf(tmp_path_factory):
    """Runs the program, and returns its standard output."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = target / "release/elf"
    if not program.is_file():
        pytest.skip(f"{program} is not there: `cargo build --release --workspace --bin elf` builds it")

    def run(*arguments):
        command = [program, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout

    return run


@pytest.fixture
def sample(elf, tmp_path):
    """The texts of ``elf sample``, from the file that it writes."""

    def texts(model, *arguments):
        file = tmp_path / "texts.jsonl"
        elf("sample", model, "--device", "cpu", *arguments, "--output", file)
        return [json.loads(line)["prediction"] for line in file.read_text(encoding="utf-8").splitlines()]

    return texts
