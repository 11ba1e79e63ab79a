"""Texts, as the program makes them, and texts as they form."""

import gc
import json
import pickle
import re
import threading
import time

import elf_flows
import pytest
from conftest import AT_ONCE, DE_EN, INFILL

INPUTS = ["Ein Programm zum Zeichnen", "TCP-Proxy für nicht IPv6-fähige Anwendungen", "Werkzeuge für Netzwerke"]


def test_the_documented_lines_work(translator):
    assert len(translator.generate(["Ein Programm zum Zeichnen"], steps=8, seed=0)) == 1
    times = []
    for frame in translator.trajectory("Ein Programm", steps=2):
        assert isinstance(frame.text, str)
        assert len(frame.tokens) == len(frame.probabilities) == len(frame.token_ids)
        assert all(0 <= p <= 1 for p in frame.probabilities)
        times.append(frame.t)
    assert len(times) > 2 and times == sorted(times)


@pytest.mark.parametrize("seed", [0, 7])
def test_texts_are_those_of_the_program(translator, sample, seed):
    theirs = sample(DE_EN, "--steps", 4, "--seed", seed, *[word for text in INPUTS for word in ("--text", text)])
    assert translator.generate(INPUTS, steps=4, seed=seed) == theirs


def test_unconditional_texts_are_those_of_the_program(writer, sample):
    settings = ["--steps", 6, "--sampler", "heun", "--temperature", 0.7]
    theirs = sample(AT_ONCE, "--num", 10, "--seed", 3, *settings)
    ours = writer.generate(num=10, steps=6, seed=3, sampler="heun", temperature=0.7)
    assert ours == theirs
    assert writer.generate(num=10, steps=6, seed=4, sampler="heun", temperature=0.7) != theirs


def test_texts_have_their_tokens(translator):
    (text,) = translator.generate(INPUTS[:1], steps=2)
    assert text.startswith("".join(text.tokens)) and len(text.tokens) == len(text.probabilities)
    assert text.confidence < 0 and not text.input_cut
    assert pickle.loads(pickle.dumps(text)).tokens == text.tokens
    (long,) = translator.generate(["sehr " * 100], steps=1)
    assert long.input_cut


def test_a_trajectory_ends_with_the_text(translator):
    trajectory = translator.trajectory(INPUTS[0], steps=2, seed=5)
    frames = list(trajectory)
    assert frames == trajectory.frames and list(trajectory) == []
    assert trajectory.text == translator.generate(INPUTS[:1], steps=2, seed=5)[0]
    assert frames[-1].step <= frames[-1].steps
    some = list(translator.trajectory(INPUTS[0], steps=2, seed=5, times=[i / 20 for i in range(21)]))
    assert 1 <= len(some) < len(frames)


def test_a_trajectory_can_be_left(writer):
    for _ in writer.trajectory(steps=2000):
        break
    gc.collect()
    begun = time.monotonic()
    # It would have to wait for 2000 steps, if they were still computed.
    writer.generate(num=1, steps=1)
    assert time.monotonic() - begun < 5


def test_the_model_can_be_used_in_the_loop(writer):
    for frame in writer.trajectory(steps=3):
        assert len(writer.generate(num=1, steps=1)) == 1


def test_two_models_in_two_threads(translator, writer):
    expected = [translator.generate(INPUTS, steps=3), writer.generate(num=4, steps=5)]
    with elf_flows.load(AT_ONCE, device="cpu") as second:
        found = {}
        jobs = {
            "translator": lambda: translator.generate(INPUTS, steps=3),
            "writer": lambda: writer.generate(num=4, steps=5),
            "second": lambda: second.generate(num=4, steps=5),
        }
        threads = [threading.Thread(target=lambda n=name, j=job: found.update({n: j()})) for name, job in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found["translator"], found["writer"]] == expected and found["second"] == expected[1]


def test_other_threads_run_meanwhile(writer):
    counted, stop = [0], threading.Event()

    def count():
        while not stop.wait(0.001):
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    writer.generate(num=16, steps=32)
    stop.set()
    thread.join()
    assert counted[0] > 5


def test_texts_are_drawn_in_notebooks(translator):
    texts = translator.generate(INPUTS[:2], steps=2)
    page = texts._repr_html_()
    assert "drawTrajectory(document.getElementById(" in page and ".elf-trajectory" in page
    assert page.count('"final": true') == 2 and page.count("</script>") == 1
    assert not re.search(r"(src|href)=|https?:|@import", page)
    assert elf_flows.Text("</script><b>")._repr_html_().count("</script>") == 1

    trajectory = translator.trajectory(INPUTS[0], steps=2)
    page = trajectory._repr_html_()
    assert page.count('"final": false') == len(trajectory.frames) and page.count('"final": true') == 1
    # Two views in one notebook have elements of their own.
    assert re.findall(r"id='([^']+)'", page) != re.findall(r"id='([^']+)'", trajectory._repr_html_())


def test_figures():
    predictions, references = ["a small tool", "fonts for X"], ["a small useful tool", "fonts for X"]
    assert elf_flows.bleu(predictions, predictions) == pytest.approx(100)
    assert 0 < elf_flows.bleu(predictions, references) < 100
    assert elf_flows.bleu(predictions, [[r, p] for r, p in zip(references, predictions)]) == pytest.approx(100)
    figures = elf_flows.rouge(predictions, references)
    assert set(figures) == {"rouge1", "rouge2", "rougeL"} and figures["rouge1"] == pytest.approx(100 * (6 / 7 + 1) / 2)


def test_gaps_are_filled_as_the_program_fills_them(filler, elf, tmp_path):
    templates = ["a [...] of the [2] family", "the [3] of a [...]"]
    file = tmp_path / "texts.jsonl"
    elf("infill", INFILL, *templates, "--device", "cpu", "--steps", 4, "--seed", 3, "--output", file)
    theirs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ours = filler.infill(templates, steps=4, seed=3)
    assert ours == [line["prediction"] for line in theirs]
    assert [text.filled for text in ours] == [line["filled"] for line in theirs]
    assert ours[0].startswith("a ") and ours[0].endswith(" family")
    assert pickle.loads(pickle.dumps(ours[0])).filled == ours[0].filled
    assert filler.generate(num=1, steps=2)[0].filled is None


def test_what_cannot_be_filled_is_refused(filler, translator):
    for text, message in [("a dog", "no gap"), ("[...]", "no word is given"), ("a [40] dog", "at most")]:
        with pytest.raises(elf_flows.RequestError, match=message):
            filler.infill([text])
    with pytest.raises(elf_flows.RequestError, match="cannot fill gaps"):
        translator.infill(["a [2] dog"])
