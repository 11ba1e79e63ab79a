"""Training, its events, and its interruption."""

import os
import pathlib
import signal

import elf_flows
import pytest
from conftest import ROOT

CONFIG = """
encoder_model_name: "{encoder}"
data_path: "{data}"
hidden_size: 32
depth: 1
num_heads: 2
max_length: 8
batch_size: 4
max_steps: {steps}
log_freq: 1
save_freq: 1000000
online_eval: false
"""


@pytest.fixture(scope="module")
def data(elf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts.txt").write_text("a red house\nthe green tree\na small dog\nold books\n" * 4)
    tokenizer = ROOT / "models/mini-encoder"
    elf("data", "prepare", "--input", folder / "texts.txt", "--tokenizer", tokenizer, "--output", folder / "shards")
    return folder / "shards"


@pytest.fixture
def config(data, tmp_path):
    def write(steps):
        path = tmp_path / f"config-{steps}.yml"
        path.write_text(CONFIG.format(encoder=ROOT / "models/mini-encoder", data=data, steps=steps))
        return path

    return write


def test_a_run_from_a_file_to_texts(config, tmp_path):
    events, output = [], tmp_path / "run"
    assert elf_flows.train(config(3), output=output, device="cpu", on_event=events.append) == "finished"
    kinds = [event.kind for event in events]
    assert "note" in kinds and "started" in kinds and "progress" in kinds
    started = events[kinds.index("started")]
    assert (started.text, started.done, started.total) == ("steps", 0, 3)
    with elf_flows.load(output, device="cpu") as model:
        assert len(model.generate(num=2, steps=2)) == 2
    # A setting may be given in the call.
    assert elf_flows.train(config(3), options={"max_steps": 5, "lr": 0.01}, output=output, device="cpu") == "finished"


def interrupted(config, output, interrupt):
    """Trains until `interrupt` is called at the tenth progress; returns the steps that are done."""
    progress = []

    def watch(event):
        if event.kind == "progress":
            progress.append(event.done)
            if len(progress) == 10:
                interrupt()

    elf_flows.train(config(1_000_000), output=output, device="cpu", on_event=watch)


def resumed_from(config, output):
    events = []
    options = {"max_minutes": 0.001}
    elf_flows.train(config(1_000_000), output=output, options=options, device="cpu", on_event=events.append)
    return [event.text for event in events if event.kind == "note" and "resuming from" in event.text]


def test_an_interrupt_saves(config, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        interrupted(config, output, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert len(resumed_from(config, output)) == 1


def test_an_exception_of_the_listener_saves(config, tmp_path):
    class Enough(Exception):
        pass

    def enough():
        raise Enough

    output = tmp_path / "run"
    with pytest.raises(Enough):
        interrupted(config, output, enough)
    assert len(resumed_from(config, output)) == 1


def test_refusals(config, tmp_path):
    with pytest.raises(elf_flows.ElfError, match="no-such-file.yml"):
        elf_flows.train(tmp_path / "no-such-file.yml")
    with pytest.raises(elf_flows.SettingError, match="output_dir"):
        elf_flows.train(config(2), device="cpu")
    with pytest.raises(elf_flows.SettingError, match="hidden_size"):
        elf_flows.train(config(2), options={"hidden_sise": 5}, output=tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run").exists()
