"""Asks a server with the models mini-de-en and mini-descriptions-blocks through the package openai."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
INPUT = "Werkzeug zum Konvertieren von Dateien"

models = [model.id for model in client.models.list()]
assert models == ["mini-de-en", "mini-descriptions-blocks"], models
assert client.models.retrieve("mini-de-en").object == "model"

made = client.completions.create(model="mini-de-en", prompt=INPUT, seed=0, logprobs=1)
choice = made.choices[0]
assert "convert" in choice.text and choice.finish_reason == "stop", made
assert made.usage.completion_tokens == len(choice.logprobs.tokens), made
assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens, made

two = client.completions.create(
    model="mini-de-en", prompt=[INPUT, INPUT], n=2, seed=3, max_tokens=3, extra_body={"steps": 4, "sampler": "heun"}
)
assert [choice.index for choice in two.choices] == [0, 1, 2, 3], two
assert all(choice.finish_reason == "length" for choice in two.choices), two
assert two.system_fingerprint.startswith("heun-4"), two

messages = [{"role": "system", "content": "Translate."}, {"role": "user", "content": INPUT}]
chat = client.chat.completions.create(model="mini-de-en", messages=messages, seed=0, logprobs=True)
assert chat.choices[0].message.content == choice.text, chat
assert "".join(token.token for token in chat.choices[0].logprobs.content) == choice.text, chat

free = {"model": "mini-descriptions-blocks", "prompt": "", "seed": 5}
whole = client.completions.create(**free)
pieces = list(client.completions.create(**free, stream=True, stream_options={"include_usage": True}))
text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
assert text == whole.choices[0].text and text, (text, whole)
assert len(pieces) > 4, pieces
assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens, pieces[-1]

stream = client.chat.completions.create(model="mini-de-en", messages=messages, seed=0, stream=True)
text = "".join(piece.choices[0].delta.content or "" for piece in stream)
assert text == choice.text, text


def refused(kind, param, **wrong):
    try:
        client.completions.create(**{"model": "mini-de-en", "prompt": INPUT, **wrong})
    except kind as error:
        assert error.param == param, error
        return
    raise AssertionError(f"{wrong} is not refused")


refused(openai.BadRequestError, "prompt", prompt="")
refused(openai.BadRequestError, "n", n=10**9)
refused(openai.BadRequestError, "logit_bias", logit_bias={"5": 1})
refused(openai.NotFoundError, "model", model="other")
