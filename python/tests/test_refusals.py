"""Bad input: each is an exception that says what to do, and the interpreter goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import elf_flows
import pytest
import torch
from conftest import AT_ONCE, ROOT


@pytest.fixture(autouse=True)
def the_model_goes_on(writer):
    yield
    assert len(writer.generate(num=1, steps=1)) == 1


def latents(model, rows=2):
    return torch.randn(rows, model.max_length, model.latent_dim)


def test_no_model(elf):
    with pytest.raises(elf_flows.PlaceError, match="mini-de-en") as ours:
        elf_flows.load(ROOT / "models/mini-de-e")
    with pytest.raises(subprocess.CalledProcessError) as theirs:
        elf("sample", ROOT / "models/mini-de-e", "--num", 1)
    # The words are those of the program.
    assert str(ours.value).split(":")[0] in theirs.value.stderr
    with pytest.raises(OSError):
        elf_flows.load(ROOT / "README.md")
    with pytest.raises(TypeError):
        elf_flows.load(5)


def test_settings(writer):
    with pytest.raises(elf_flows.SettingError, match="euler"):
        writer.generate(num=1, sampler="no-such-sampler")
    for settings in [{"no_such_setting": 1}, {"steps": 0}, {"steps": 10**9}, {"temperature": -1.0}, {"cfg": []},
                     {"batch_size": 0}, {"batch_size": 10**9}, {"top_p": 2.0}]:
        with pytest.raises(elf_flows.ElfError, match=next(iter(settings))[:4]):
            writer.generate(num=1, **settings)
    for negative in [{"seed": -1}, {"steps": -1}, {"num": -1}]:
        with pytest.raises((OverflowError, TypeError)):
            writer.generate(**negative)
    with pytest.raises(elf_flows.ElfError):
        writer.generate(num=10**9, steps=1)
    with pytest.raises(elf_flows.SettingError, match="times"):
        writer.trajectory(times=[0.5, 1.5])
    with pytest.raises(elf_flows.SettingError, match="device"):
        elf_flows.load(AT_ONCE, device="gpu")
    with pytest.raises(elf_flows.SettingError, match="fp32"):
        elf_flows.load(AT_ONCE, precision="int8")
    if not torch.cuda.is_available():
        with pytest.raises(elf_flows.SettingError, match="device"):
            elf_flows.load(AT_ONCE, device="cuda:7")


def test_texts(translator, writer):
    with pytest.raises(TypeError, match=r"texts\[1\] is of type int"):
        translator.generate(["ein Haus", 5])
    with pytest.raises(TypeError, match="single str"):
        translator.generate("ein Haus")
    with pytest.raises(TypeError, match="list of str"):
        translator.generate(5)
    with pytest.raises(elf_flows.RequestError, match="takes no input"):
        writer.generate(["a house"])
    with pytest.raises(elf_flows.RequestError, match="give texts"):
        translator.generate()
    with pytest.raises(elf_flows.RequestError, match="num"):
        translator.generate(["ein Haus"], num=2)
    with pytest.raises(elf_flows.RequestError, match="inputs"):
        translator.encode(["a house"])
    with pytest.raises(elf_flows.RequestError, match="takes no input"):
        list(writer.trajectory("a house"))
    with pytest.raises(elf_flows.RequestError, match="nothing to encode"):
        writer.encode([])
    with pytest.raises(UnicodeEncodeError):
        translator.generate(["\ud800"])
    with pytest.raises(elf_flows.ElfError, match="reference"):
        elf_flows.bleu(["a"], ["a", "b"])
    with pytest.raises(elf_flows.ElfError):
        elf_flows.rouge([], [])


def test_tensors(writer):
    z = latents(writer)
    for wrong in [z[0], z[:, :, :-1], z[:, :0], z[:0], z.reshape(-1), torch.tensor(1.0)]:
        with pytest.raises(elf_flows.MismatchError, match="z has the shape"):
            writer.denoise(wrong, 0.5)
    for wrong in [z.double(), z.long(), z > 0]:
        with pytest.raises(elf_flows.MismatchError, match="z has elements of type"):
            writer.denoise(wrong, 0.5)
    for wrong in [z.half(), z.bfloat16(), z.to(torch.complex64)]:
        with pytest.raises(elf_flows.TensorError, match="float"):
            writer.denoise(wrong, 0.5)
    for wrong in [5, "z", None, [[1.0]], object()]:
        with pytest.raises(elf_flows.TensorError, match="torch.Tensor"):
            writer.denoise(wrong, 0.5)
    for wrong in [z.to("meta"), z.to_sparse()]:
        with pytest.raises(elf_flows.TensorError, match="z cannot be used"):
            writer.denoise(wrong, 0.5)
    with pytest.raises(elf_flows.MismatchError, match="x_prev has the shape"):
        writer.denoise(z, 0.5, z[:1])
    with pytest.raises(elf_flows.MismatchError, match="t has the shape"):
        writer.denoise(z, torch.zeros(3))
    with pytest.raises(elf_flows.MismatchError, match="guidance has elements"):
        writer.denoise(z, 0.5, guidance=torch.ones(2, dtype=torch.float64))
    with pytest.raises(TypeError):
        writer.denoise(z, "half")
    with pytest.raises(TypeError):
        writer.denoise(z, 0.5, given=z)
    with pytest.raises(elf_flows.MismatchError, match="rows"):
        writer.denoise(z, 0.5, given=writer.encode(["one"]))
    with pytest.raises(elf_flows.MismatchError, match="z has the shape"):
        writer.decode(z[0])
    # Numbers that are none are no reason to crash.
    writer.decode(torch.full_like(z, float("nan")))


def test_a_closed_model():
    model = elf_flows.load(AT_ONCE, device="cpu")
    trajectory = model.trajectory(steps=2)
    model.close()
    model.close()
    assert model.closed and "closed" in repr(model)
    for use in [lambda: model.generate(num=1), lambda: model.encode(["a"]), model.trajectory]:
        with pytest.raises(elf_flows.ClosedError, match="load it again"):
            use()
    # What was begun before is finished.
    assert isinstance(trajectory.text, str)


def in_a_fork(model, answers):
    try:
        model.generate(num=1, steps=1)
    except elf_flows.ClosedError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process(writer):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=in_a_fork, args=(writer, answers))
    child.start()
    assert "forked" in answers.get(timeout=30)
    child.join()


def test_interrupts_stop_generation(writer):
    interrupt = threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        writer.generate(num=64, steps=20_000)


def python(source, **environment):
    command = [sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize("version", ["2.10.0", "2.12.1+cpu", "2.1.1"])
def test_a_torch_of_another_version(tmp_path, version):
    (tmp_path / "torch.py").write_text(f"__version__ = '{version}'\n")
    ended = python("import elf_flows", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and version in last and 'pip install "torch==2.11.*"' in last


def test_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    ended = python("import elf_flows", PYTHONPATH=str(tmp_path))
    assert ended.stderr.strip().splitlines()[-1].startswith("ImportError: elf_flows computes with PyTorch 2.11")


def test_the_interpreter_ends_while_texts_are_made():
    source = f"""
import elf_flows
model = elf_flows.load({str(AT_ONCE)!r}, device="cpu")
next(model.trajectory(steps=50_000))
kept = model.trajectory(steps=50_000)
next(kept)
print("ending")
"""
    ended = python(source)
    assert (ended.returncode, ended.stdout) == (0, "ending\n"), ended.stderr


def test_a_panic_is_an_exception():
    with pytest.raises(elf_flows.InternalError, match="reported: out of thin air"):
        elf_flows._native.panic_elsewhere("out of thin air")
