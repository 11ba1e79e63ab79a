"""What `generate` costs beside the program, measured in turns: `python overhead.py [--rounds 5]`.

Run it in the environment of `cargo xtask python` (`target/python-environment/bin/python`). The program's time is the one that it
prints; loading is in neither.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import time

import elf_flows

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program(model, texts, steps):
    command = [ROOT / "target/release/elf", "sample", model, "--device", "cpu", "--steps", str(steps)]
    command += [word for text in texts for word in ("--text", text)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    # Seconds are printed with one decimal; positions and their rate are more exact.
    rate = float(re.search(r"([\d.]+) positions/s", ended.stderr)[1])
    return rate, float(re.search(r"texts in ([\d.]+) s", ended.stderr)[1])


def package(model, texts, steps):
    begun = time.perf_counter()
    model.generate(texts, steps=steps)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--model", default=str(ROOT / "models/mini-de-en"))
    options = parser.parse_args()
    texts = [f"Programm Nummer {number} zum Zeichnen von Karten" for number in range(64)]
    model = elf_flows.load(options.model, device="cpu")
    model.generate(texts[:8], steps=2)
    theirs, ours = [], []
    for _ in range(options.rounds):
        rate, seconds = program(options.model, texts, options.steps)
        theirs.append((rate, seconds))
        ours.append(package(model, texts, options.steps))
        print(f"program {seconds:.1f} s ({rate:.0f} positions/s), package {ours[-1]:.2f} s", flush=True)
    positions = statistics.median(rate * seconds for rate, seconds in theirs)
    exact = [positions / rate for rate, _ in theirs]
    ratio = statistics.median(ours) / statistics.median(exact)
    print(f"medians: program {statistics.median(exact):.2f} s, package {statistics.median(ours):.2f} s, ratio {ratio:.3f}")


main()
