/**
 * Draws texts as they form: a slider over t, and each token coloured by its probability.
 *
 * `frames` are events of `POST /v1/trajectories`: `{index, t, step, steps, text, tokens: [{text, probability}]}`, and for
 * a finished text `{index, final: true, text, tokens, confidence}`. More can be added while they arrive. The result has
 * `add(frame)`, `show(t)` (`null` for the end), and `t`, the time that is shown (`null` at the end).
 */
function drawTrajectory(element, frames = []) {
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = `elf-${name}`;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // Finished texts come after all times.
  const timeOf = (frame) => (frame.final ? Infinity : frame.t);
  const samples = new Map();
  const times = []; // The times of all frames, ascending, each once.
  let shown = Infinity; // The time that is shown; infinity follows the latest frame.
  let timer = 0;

  const root = make("div", "trajectory");
  const controls = make("div", "controls");
  const play = make("button", "play", "Play");
  play.type = "button";
  const label = make("label", "time-label", "Time");
  const slider = make("input", "time");
  Object.assign(slider, { type: "range", min: 0, max: 0, step: 1, value: 0, disabled: true });
  label.append(slider);
  const reading = make("span", "reading");
  controls.append(play, label, reading);
  const texts = make("ol", "samples");
  root.append(controls, legend(), texts);
  element.replaceChildren(root);

  function legend() {
    const line = make("div", "legend");
    const scale = make("span", "scale");
    scale.setAttribute("aria-hidden", "true");
    const numbers = make("label", "numbers");
    const box = make("input");
    box.type = "checkbox";
    box.addEventListener("change", () => root.classList.toggle("elf-with-numbers", box.checked));
    numbers.append(box, " as numbers");
    line.append(make("span", "", "Probability of a token: 0"), scale, make("span", "", "1"), numbers);
    return line;
  }

  /** The sample with this index, made where it is new; samples stand in the order of their indices. */
  function sampleOf(index) {
    if (!samples.has(index)) {
      const card = make("li", "sample");
      const body = make("p", "text");
      const note = make("p", "note");
      card.append(make("h3", "name", `Sample ${index + 1}`), body, note);
      const next = [...samples.keys()].filter((other) => other > index).sort((a, b) => a - b)[0];
      texts.insertBefore(card, next === undefined ? null : samples.get(next).card);
      samples.set(index, { card, body, note, frames: [] });
      root.classList.toggle("elf-single", samples.size === 1);
    }
    return samples.get(index);
  }

  /** The nodes of a token: the space before a word has no colour. */
  function tokenNodes({ text, probability }) {
    const word = text.trimStart() || text;
    const node = make("span", "token", word);
    if (typeof probability === "number") {
      node.style.setProperty("--elf-p", probability);
      node.title = `probability ${probability.toFixed(3)}`;
      node.dataset.probability = probability.toFixed(2).replace(/^0/, "");
    }
    return [text.slice(0, text.length - word.length), node];
  }

  function drawSample(sample) {
    const frame = sample.frames.findLast((one) => timeOf(one) <= shown);
    if (frame === sample.drawn) return;
    sample.drawn = frame;
    const tokens = frame?.tokens ?? (frame?.text ? [{ text: frame.text }] : []);
    sample.body.replaceChildren(...(tokens.length ? tokens.flatMap(tokenNodes) : [make("span", "nothing", "no word yet")]));
    const notes = [];
    if (typeof frame?.confidence === "number") {
      notes.push(`confidence ${frame.confidence.toFixed(2)} (mean log-probability of its tokens)`);
    }
    if (frame?.input_cut) notes.push("the input was longer than the model reads, and was cut");
    sample.note.textContent = notes.join("; ");
  }

  /** What is shown, in words. */
  function words(time) {
    if (time === undefined) return "";
    if (time === Infinity) return "finished";
    const frame = [...samples.values()].flatMap((sample) => sample.frames).find((one) => timeOf(one) === time);
    const step = frame?.step === undefined ? "" : `, step ${frame.step} of ${frame.steps}`;
    return `t = ${time.toFixed(3)}${step}`;
  }

  function draw() {
    for (const sample of samples.values()) drawSample(sample);
    const place = Math.max(0, times.findLastIndex((time) => time <= shown));
    slider.max = Math.max(0, times.length - 1);
    slider.value = place;
    slider.disabled = play.disabled = times.length < 2;
    reading.textContent = words(times[place]);
    slider.setAttribute("aria-valuetext", reading.textContent);
    root.dataset.frames = times.length;
  }

  function showPlace(place) {
    shown = place >= times.length - 1 ? Infinity : times[place];
    draw();
  }

  function stop() {
    if (!timer) return;
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    slider.dispatchEvent(new Event("change", { bubbles: true }));
  }

  play.addEventListener("click", () => {
    if (timer) return stop();
    let place = shown === Infinity ? 0 : Number(slider.value);
    showPlace(place);
    play.textContent = "Pause";
    timer = setInterval(() => {
      place += 1;
      showPlace(place);
      if (place >= times.length - 1) stop();
    }, Math.min(400, Math.max(60, 5000 / times.length)));
  });
  slider.addEventListener("input", () => {
    stop();
    showPlace(Number(slider.value));
  });

  function take(frame) {
    sampleOf(frame.index).frames.push(frame);
    const time = timeOf(frame);
    const before = times.findLastIndex((other) => other <= time);
    if (times[before] !== time) times.splice(before + 1, 0, time);
  }
  frames.forEach(take);
  draw();

  return {
    add(frame) {
      take(frame);
      draw();
    },
    show(t) {
      stop();
      shown = t ?? Infinity;
      draw();
    },
    get t() {
      return shown === Infinity ? null : shown;
    },
  };
}
