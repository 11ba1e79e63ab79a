"""Tensors in and out: the network as a function."""

import json
import os
import pathlib

import elf_flows
import pytest
import torch
from conftest import ROOT


def test_what_is_encoded_is_decoded(writer):
    texts = ["Python library for drawing", "fonts for X", "library for reading files", "tools for the GNOME desktop"]
    encoded = writer.encode(texts)
    rows, positions, channels = encoded.latents.shape
    assert (rows, channels) == (4, writer.latent_dim) and 0 < positions <= writer.max_length
    assert encoded.latents.dtype == torch.float32 and encoded.ids.dtype == torch.int64

    def right(latents):
        read = writer.decode(latents)
        rows = zip(encoded.ids.tolist(), read, encoded.lengths)
        # The last token is the end of the text, which is not read as one.
        pairs = [pair for ids, text, length in rows for pair in zip(ids[: length - 1], text.token_ids)]
        return sum(a == b for a, b in pairs) / sum(length - 1 for length in encoded.lengths)

    # This small model is far from sure, even of clean latents.
    assert right(encoded.latents) > 0.4 > right(torch.randn_like(encoded.latents)) + 0.2


def test_a_sampler_of_ten_lines(writer):
    torch.manual_seed(0)
    z = writer.noise_scale * torch.randn(4, writer.max_length, writer.latent_dim)
    x, times = None, torch.linspace(0, 1, 17)
    for t, after in zip(times[:-1], times[1:]):
        x = writer.denoise(z, t, x, guidance=3.0)
        z = z + (after - t) * (x - z) / max(1 - t, writer.time_epsilon)
    texts = writer.decode(z)
    assert len(texts) == 4 and all(len(text.split()) > 1 for text in texts)
    noise = writer.decode(writer.noise_scale * torch.randn_like(z))
    mean = lambda all: sum(sum(text.probabilities) / max(1, len(text.probabilities)) for text in all) / len(all)
    assert mean(texts) > mean(noise)


def test_the_next_token_after_a_prefix(translator):
    given = translator.encode(inputs=["Ein Programm zum Zeichnen"])
    assert given.latents.shape[1] == given.lengths[0] == given.input_lengths[0]
    z = translator.noise_scale * torch.randn(1, translator.block_size, translator.latent_dim)
    x = translator.denoise(z, 0.0, given=given)
    assert x.shape == z.shape
    # The estimate depends on what is given, and that on the text so far.
    assert not torch.allclose(x, translator.denoise(z, 0.0), atol=1e-3)
    further = translator.encode(["a program"], inputs=["Ein Programm zum Zeichnen"])
    assert further.lengths[0] > given.lengths[0]
    assert not torch.allclose(x, translator.denoise(z, 0.0, given=further), atol=1e-3)
    assert len(translator.decode(x, given=given)) == 1


def test_no_tensor_is_copied(writer):
    z = torch.randn(2, writer.max_length, writer.latent_dim)
    before = z.clone()
    base = writer.denoise(z, 0.5)
    assert torch.equal(z, before)
    # Strides are kept: a view of other memory gives the same.
    wide = torch.randn(2, writer.latent_dim, writer.max_length).transpose(1, 2)
    assert torch.allclose(writer.denoise(wide, 0.5), writer.denoise(wide.contiguous(), 0.5), atol=1e-5)
    offset = torch.cat([torch.zeros_like(z), z])[2:]
    assert torch.equal(writer.denoise(offset, 0.5), base)
    # A result is a tensor like any other: it can be written, and it outlives the model's next results.
    kept = base.clone()
    base += 1
    writer.denoise(z, 0.1)
    assert torch.equal(base, kept + 1)


def test_one_number_or_one_for_each_row(writer):
    z = torch.randn(2, writer.max_length, writer.latent_dim)
    both = writer.denoise(z, torch.tensor([0.2, 0.7]), guidance=torch.tensor([1.0, 2.0]))
    for row, (t, w) in enumerate([(0.2, 1.0), (0.7, 2.0)]):
        alone = writer.denoise(z, t, guidance=w)
        assert torch.allclose(both[row], alone[row], atol=1e-5)
    assert torch.equal(writer.denoise(z, 0.5), writer.denoise(z, torch.tensor(0.5)))
    # Tensors with gradients are taken as they are; the network has none.
    assert not writer.denoise(z.requires_grad_(), 0.5).requires_grad


def parity_folder():
    named = os.environ.get("ELF_PARITY_DIR")
    places = [pathlib.Path(named)] if named else [ROOT / "tests/parity", ROOT.parent / "shared/parity"]
    return next((place for place in places if (place / "forward.safetensors").is_file()), None)


@pytest.mark.parametrize("case", ["denoise", "no_sc_tokens"])
def test_parity_with_the_released_code(case, tmp_path):
    folder = parity_folder()
    if folder is None:
        pytest.skip("there are no reference numbers of the released code: set ELF_PARITY_DIR to their folder")
    from safetensors.torch import load_file

    numbers = load_file(folder / "forward.safetensors")
    weights = folder / ("model.safetensors" if case == "denoise" else "model_no_sc_tokens.safetensors")
    vocabulary = load_file(weights)["unembed_kernel"].shape[1]
    # The network was made with random numbers: any tokenizer with as many entries fits.
    words = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    special = [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for word, i in list(words.items())[:2]]
    tokenizer = {"version": "1.0", "added_tokens": special, "pre_tokenizer": {"type": "Whitespace"},
                 "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    length = numbers["in.z"].shape[1]
    with elf_flows.load(weights, tokenizer=tmp_path / "tokenizer.json", length=length, device="cpu", precision="fp32") as model:
        x = model.denoise(numbers["in.z"], numbers["in.t"], numbers["in.x_prev"], guidance=numbers["in.sc_cfg_scale"])
    assert (x - numbers[f"{case}.x"]).abs().max() < 1e-5
