"use strict";
const find = (id) => document.getElementById(id);
const [model, input, n, steps, sampler, guidance, seed] = ["model", "input", "n", "steps", "sampler", "guidance", "seed"].map(find);
let models = [];
let key = ""; // Kept here only: not in the address, not in the browser's storage.
let running = null; // The request that is being answered.
let view = null;
let asked = null; // What the texts that are shown were asked for.

const GAPS = "[...] is a gap of any length, [2] one of two tokens; without a text, a whole one is written. Click words of a finished text to free them.";
const LOST = "The connection ended before the texts were finished.";

/** A reason for a person. */
class Problem extends Error {}

function tell(problem) {
  find("problem").textContent = problem;
  find("problem").hidden = !problem;
}

function say(status) {
  find("status").textContent = status;
}

/** Asks the server; refusals are thrown in its own words. */
async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    askForKey();
    throw new Problem(key ? "The server does not accept this key." : "");
  }
  const body = await response.json().catch(() => null);
  throw Object.assign(new Problem(body?.error?.message ?? `The server answered with status ${response.status}.`), {
    status: response.status,
  });
}

function askForKey() {
  find("key-form").hidden = false;
  find("fields").disabled = true;
  say("");
  find("key").focus();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = find("key").value.trim();
  find("key-form").hidden = true;
  start();
});

/** Gets the models, when the server has loaded them, and shows what the address asks for. */
async function start() {
  tell("");
  try {
    models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    if (error.status === 503) {
      say("The server is loading its models …");
      return setTimeout(start, 1000);
    }
    say("");
    return tell(error.message);
  }
  find("fields").disabled = false;
  model.replaceChildren(...models.map(({ id }) => new Option(id, id)));
  say("");
  followAddress();
}

const chosen = () => models.find(({ id }) => id === model.value);

/** Shows the fields that the model has, with its own settings. */
function adapt() {
  const { kind, parameters, positions, input_positions, block_size, settings, samplers, fills_gaps } = chosen();
  const length = positions - (input_positions ?? 0);
  const blocks = block_size === null ? "" : `, ${block_size === 1 ? "one token" : `${block_size} tokens`} after the other`;
  const size = parameters < 1e6 ? parameters : `${(parameters / 1e6).toFixed(1)} million`;
  find("about").textContent = `${kind}; ${size} parameters; up to ${length} tokens${blocks}`;
  find("input-field").hidden = input_positions === null && !fills_gaps;
  find("input-label").textContent = fills_gaps ? "Text with gaps" : "Input";
  find("input-note").textContent = `${fills_gaps ? GAPS : ""} Ctrl+Enter generates.`;
  input.placeholder = fills_gaps ? "a [...] of the [2] family" : "";
  input.required = input_positions !== null;
  const names = samplers.filter((name) => name !== settings.sampler);
  sampler.replaceChildren(new Option(settings.sampler, ""), ...names.map((name) => new Option(name, name)));
  for (const field of [steps, sampler, guidance]) {
    const has = settings[field.id] !== undefined;
    field.parentElement.hidden = field.disabled = !has;
    if (field !== sampler) field.value = settings[field.id] ?? "";
  }
}
model.addEventListener("change", adapt);

/** What the fields ask for; a seed is drawn where none is given. */
function wish() {
  const wished = { model: model.value };
  if (input.required) wished.prompt = input.value;
  if (chosen().fills_gaps && input.value.trim()) wished.text = input.value;
  wished.n = n.value;
  for (const field of [steps, sampler, guidance]) if (!field.disabled && field.value) wished[field.id] = field.value;
  wished.seed = seed.value || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  return wished;
}

/** The body of the request. Numbers are taken over as they were typed: seeds may have more digits than JavaScript's numbers. */
function bodyOf(wished) {
  const texts = ["model", "prompt", "text", "sampler"];
  const pair = ([name, value]) => `${JSON.stringify(name)}: ${texts.includes(name) ? JSON.stringify(value) : BigInt(value)}`;
  const number = ([name, value]) => (name === "guidance" ? `"guidance": ${Number(value)}` : pair([name, value]));
  return `{${Object.entries(wished).map(number).join(", ")}}`;
}

/** The events of a stream, up to its end. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Problem(LOST);
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((one) => one.startsWith("data: "))) {
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message);
      yield event;
    }
  }
}

/** The frames of an answer: those of a stream, or the finished texts of a model that shows none. */
async function* framesOf(path, body, signal) {
  const response = await ask(path, { method: "POST", body, signal });
  if (path === "v1/trajectories") return yield* events(response);
  const answer = await response.json();
  for (const { index, text } of answer.choices ?? answer.data) yield { index, text, final: true };
}

/** Shows one button in place of another, which passes its focus on. */
function offer(button, other) {
  const focused = document.activeElement === find(other);
  find(button).hidden = false;
  if (focused) find(button).focus();
  find(other).hidden = true;
}

/** Generates what is wished for, and shows it; `t` is the time that is shown when all is there. */
async function generate(wished, t = null) {
  running?.abort();
  const mine = (running = new AbortController());
  asked = wished;
  const whole = wished.text === undefined ? "v1/completions" : "v1/infill";
  const path = chosen().trajectories ? "v1/trajectories" : whole;
  const body = bodyOf(wished);
  tell("");
  say("Forming …");
  offer("stop", "generate");
  find("result").hidden = false;
  const { prompt = wished.text, text: _, seed: shownSeed, ...others } = wished;
  const told = Object.entries(others).map(([name, value]) => (name === "n" ? `samples ${value}` : `${name} ${value}`));
  find("given").textContent = `Seed ${shownSeed}; ${told.join(", ")}${prompt ? `; input: ${prompt}` : ""}`;
  find("curl").textContent = curl(path, body);
  view = drawTrajectory(find("view"));
  find("words").replaceChildren();
  find("words").hidden = true;
  if (t !== null) view.show(t);
  if (find("view").getBoundingClientRect().top > 0.7 * innerHeight) find("result").scrollIntoView();
  remember();
  try {
    for await (const frame of framesOf(path, body, mine.signal)) {
      if (running !== mine) continue;
      view.add(frame);
      if (frame.final && frame.tokens && chosen().fills_gaps) offerWords(frame.tokens);
    }
    if (running === mine) say("Finished.");
  } catch (error) {
    if (running !== mine) return;
    say(error.name === "AbortError" ? "Stopped." : "");
    if (error.name !== "AbortError") tell(error instanceof Problem ? error.message : LOST);
  } finally {
    if (running === mine) {
      running = null;
      offer("generate", "stop");
    }
  }
}

/** Shows the words of a finished text as buttons; those that are pressed become gaps of the text in the field. */
function offerWords(tokens) {
  const words = [];
  for (const { text } of tokens) {
    if (words.length && !text.startsWith(" ")) {
      words.at(-1).text += text;
      words.at(-1).tokens += 1;
    } else words.push({ text: text.trim(), tokens: 1 });
  }
  const row = document.createElement("p");
  const buttons = words.map(({ text }) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "word", textContent: text });
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  const freed = (place) => buttons[place].getAttribute("aria-pressed") === "true";
  row.addEventListener("click", ({ target }) => {
    const place = buttons.indexOf(target);
    if (place < 0) return;
    target.setAttribute("aria-pressed", String(!freed(place)));
    const parts = [];
    words.forEach(({ text, tokens }, other) => {
      if (!freed(other)) parts.push(text.replaceAll("[", "\\["));
      else if (other && freed(other - 1)) parts.push(parts.pop() + tokens);
      else parts.push(tokens);
    });
    input.value = parts.map((part) => (typeof part === "number" ? `[${part}]` : part)).join(" ");
  });
  row.append(...buttons);
  find("words").append(row);
  find("words").hidden = false;
}

function curl(path, body) {
  const header = key ? ' -H "Authorization: Bearer $ELF_KEY"' : "";
  return `curl -N${header} -d '${body.replaceAll("'", "'\\''")}' ${new URL(path, location.href.split("#")[0]).href}`;
}

/** Puts what is shown into the address. */
function remember() {
  const values = new URLSearchParams(asked);
  if (view.t !== null) values.set("t", view.t);
  find("link").href = `#${values}`;
  history.replaceState(null, "", `#${values}`);
}
find("view").addEventListener("change", remember);

/** Fills the fields from the address, and generates where it has a seed, as links to views do. */
function followAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const named = values.get("model");
  if (named !== null && !models.some(({ id }) => id === named)) {
    tell(`This server has no model ${named}.`);
    return adapt();
  }
  if (named !== null) model.value = named;
  adapt();
  input.value = values.get("prompt") ?? values.get("text") ?? "";
  n.value = values.get("n") ?? 1;
  seed.value = values.get("seed") ?? "";
  for (const field of [steps, sampler, guidance]) if (values.has(field.id)) field.value = values.get(field.id);
  if (values.has("seed") && find("wish").reportValidity()) generate(wish(), values.has("t") ? Number(values.get("t")) : null);
}
window.addEventListener("hashchange", () => models.length && followAddress());

find("wish").addEventListener("submit", (event) => {
  event.preventDefault();
  generate(wish());
});
find("stop").addEventListener("click", () => running?.abort());
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("wish").requestSubmit();
});
start();
