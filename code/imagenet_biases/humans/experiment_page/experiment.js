"use strict";
// One session in jsPsych. Stimuli are drawn on frames of the display (requestAnimationFrame), whose times are reported.

const { ParameterType } = jsPsychModule;
const GRID = ("knife airplane keyboard elephant bicycle clock oven chair bear boat cat bottle truck car bird dog")
  .split(" "); // in the published order
const KEYS = [..."1234QWERASDFZXCV"].map(sign => (sign < "A" ? "Digit" : "Key") + sign); // places, whatever the layout
const CARD_CM = 8.56; // the width of a bank card (ISO/IEC 7810 ID-1)
const tab = crypto.randomUUID();
let state, layout, frame = 1000 / 60, side = 224;

const text = (key, values = {}) => state.texts[key].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
const escaped = words => words.replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
const paragraph = (key, values, kind = "") => `<p class="${kind}">${escaped(text(key, values))}</p>`;
const heading = key => `<h1>${escaped(text(key))}</h1>`;
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The server ----------------------------------------------------------------------------------------------------------

async function post(action, value) {
  const body = JSON.stringify({ tab, value });
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(action, { method: "POST", headers, body, keepalive: action === "release" });
  return { status: reply.status, body: reply.headers.get("Content-Type") === "application/json" ? await reply.json() : {} };
}

// The server may be gone for a moment; an answer whose reply was lost has been stored, as a new claim tells.
async function store(value) {
  for (let attempt = 0; attempt < 5; attempt++) {
    try {
      let reply = await post("answer", value);
      if (reply.status === 400) reply = await post("claim");
      if (reply.status === 409) return stop("taken");
      if (reply.body.next === value.trial + 1) return undefined;
    } catch {
      await pause(1000);
    }
  }
  return stop("lost");
}

function stop(key, title = "") {
  document.body.className = "";
  const message = make("div", { className: "screen" });
  message.innerHTML = title + paragraph(key);
  document.getElementById("display").replaceChildren(message);
  return new Promise(() => {}); // nothing follows
}

const pictures = new Map();

function picture(source, number) {
  const key = `${source}/${number}`;
  if (!pictures.has(key)) {
    const load = async kind => {
      const reply = await fetch(`${kind}/${key}`);
      return reply.ok ? createImageBitmap(await reply.blob()) : Promise.reject(reply.status);
    };
    const both = Promise.all([load("stimulus"), load("mask")]);
    both.catch(() => pictures.delete(key)); // tried again when it is needed
    pictures.set(key, both);
  }
  return pictures.get(key);
}

// Screens of text -----------------------------------------------------------------------------------------------------

class Screen {
  static info = {
    name: "screen", version: "1.0.0", data: {},
    parameters: { html: {}, button: { default: "continue" }, prepare: { type: ParameterType.FUNCTION, default: null } },
  };

  trial(element, { html, button, prepare }) {
    document.body.className = "";
    const next = make("button", { className: "next", textContent: text(button) });
    const form = make("form", { className: "screen" });
    form.innerHTML = (state.factor === 1 ? "" : paragraph("test", {}, "soft")) + html;
    form.append(next, make("p", { className: "soft", textContent: text("keys") }));
    element.replaceChildren(form);
    const finish = prepare?.(form);
    (form.querySelector("input") ?? next).focus();
    return new Promise(resolve => {
      form.onkeydown = event => { // space also from the slider; a key that is held is pressed once
        if (event.code !== "Space" && event.code !== "Enter") return;
        event.preventDefault();
        if (!event.repeat) form.requestSubmit();
      };
      form.onsubmit = async event => {
        event.preventDefault();
        form.onsubmit = other => other.preventDefault();
        if (navigator.userActivation?.isActive) document.documentElement.requestFullscreen?.().catch(() => {});
        await finish?.();
        resolve({});
      };
    });
  }
}

const svg = name => `<svg aria-hidden="true"><use href="pictograms.svg#${name}"></use></svg>`;
const letter = index => (layout?.get(KEYS[index]) ?? KEYS[index].at(-1)).toUpperCase();

const legend = () => `<div class="grid">${GRID.map((name, index) =>
  `<div>${svg(name)}<span>${escaped(text(name))}</span><kbd>${escaped(letter(index))}</kbd></div>`).join("")}</div>`;

const calibration = () => `${heading("calibration_title")}<label for="width">${escaped(text("calibration_card"))}</label>
  <div class="card"><div></div></div>
  <input id="width" type="range" min="150" max="620" step="1">
  <label for="distance">${escaped(text("calibration_distance"))}</label>
  <input id="distance" type="number" min="20" max="300" step="any" required> ${paragraph("calibration_keep", {}, "soft")}`;

function calibrate(form) {
  const [width, distance, card] = ["#width", "#distance", ".card div"].map(selector => form.querySelector(selector));
  width.value = (state.display.px_per_cm ?? 37.8) * CARD_CM; // 96 CSS pixels per inch
  distance.value = state.display.distance_cm ?? 57;
  width.oninput = () => Object.assign(card.style, { // the width is what counts
    width: `${width.value}px`, height: `${Math.min(width.value * 0.63, 130)}px`,
  });
  width.oninput();
  return () => {
    state.display.px_per_cm = width.value / CARD_CM;
    state.display.distance_cm = Number(distance.value);
  };
}

// Trials --------------------------------------------------------------------------------------------------------------

const canvas = make("canvas");
const choices = GRID.map((name, index) => {
  const button = make("button", { type: "button", tabIndex: -1 });
  button.innerHTML = `<kbd></kbd>${svg(name)}`;
  button.onpointerdown = event => choose(index, event);
  return button;
});
const grid = make("div", { className: "grid" }, ...choices);
const stage = make("div", { className: "stage" }, canvas, grid);
let choose = () => {};

document.addEventListener("keydown", event => {
  const index = KEYS.indexOf(event.code);
  if (index >= 0 && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey) choose(index, event);
});

function draw(image) {
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingQuality = "high";
  context.fillStyle = state.grey;
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
}

function fixation() {
  draw();
  const context = canvas.getContext("2d"), size = Math.max(4, Math.round(canvas.width / 28));
  context.fillStyle = "#000";
  context.fillRect((canvas.width - size) / 2, (canvas.height - size) / 2, size, size);
}

// Draw each step on the first frame at which the one before has lasted; resolve with the frames' times. A step ends half
// a frame early rather than half a frame late, so that its length is the nearest whole number of frames.
function present(steps) {
  const onsets = [];
  let dropped = 0, previous;
  return new Promise(resolve => {
    requestAnimationFrame(function show(now) {
      if (previous !== undefined) dropped += Math.max(0, Math.round((now - previous) / frame) - 1);
      previous = now;
      if (!onsets.length || now - onsets.at(-1) >= steps[onsets.length - 1].ms - frame / 2) {
        if (onsets.push(now) > steps.length) return resolve({ onsets, dropped });
        steps[onsets.length - 1].draw();
      }
      requestAnimationFrame(show);
    });
  });
}

function showGrid(visible) {
  grid.hidden = !visible;
  canvas.hidden = visible;
  document.body.className = visible ? "trial" : "trial looking";
}

class Recognition {
  static info = {
    name: "recognition", version: "1.0.0", data: {},
    parameters: { source: {}, number: {}, category: { default: null }, next: { default: [] } },
  };

  async trial(element, { source, number, category, next }) {
    const [stimulus, mask] = await picture(source, number).catch(() => picture(source, number)).catch(status =>
      stop(status === 500 ? "unreadable" : "lost"));
    pictures.delete(`${source}/${number}`);
    draw();
    showGrid(false);
    choices.forEach(button => button.classList.remove("chosen", "right"));
    element.replaceChildren(stage);
    let response = "na", at = null;
    const { times } = state;
    const { onsets, dropped } = await present([
      { ms: times.fixation, draw: fixation },
      { ms: times.stimulus, draw: () => draw(stimulus) },
      { ms: times.mask, draw: () => draw(mask) },
      { ms: times.response, draw: () => {
        showGrid(true);
        choose = (index, event) => {
          if (response !== "na") return;
          response = GRID[index];
          at = event.timeStamp;
          choices[index].classList.add("chosen");
          if (category) choices[GRID.indexOf(category)].classList.add("right");
        };
        next.forEach(([from, which]) => picture(from, which)); // not while a stimulus is shown
      } },
    ]);
    choose = () => {};
    if (category && response !== category) {
      choices[GRID.indexOf(category)].classList.add("right");
      await pause(times.feedback);
    }
    showGrid(false);
    draw();
    [stimulus, mask].forEach(image => image.close());
    const rt = at === null ? null : Math.max(0, (at - onsets[3]) / 1000 * state.factor);
    const durations = [0, 1, 2].map(step => onsets[step + 1] - onsets[step]);
    if (source === "session") await store({ trial: number, response, rt, durations, dropped });
    return { response, rt };
  }
}

// The session ---------------------------------------------------------------------------------------------------------

// The median interval between frames, in milliseconds.
async function measureFrame(count = state.factor === 1 ? 60 : 10) {
  const times = [];
  while (times.length <= count) times.push(await new Promise(requestAnimationFrame));
  return times.slice(1).map((time, index) => time - times[index]).sort((a, b) => a - b)[count / 2];
}

// What follows the calibration: the size of the stimuli, and what is told of the display.
async function fit() {
  frame = await measureFrame();
  const { px_per_cm: scale, distance_cm: distance } = state.display;
  if (state.degrees) side = 2 * distance * Math.tan(state.degrees * Math.PI / 360) * scale;
  canvas.width = canvas.height = Math.round(side * devicePixelRatio);
  canvas.style.width = canvas.style.height = `${canvas.width / devicePixelRatio}px`;
  Object.assign(state.display, {
    frame, refresh_hz: 1000 / frame, stimulus_px: canvas.width, stimulus_css_px: side, device_pixel_ratio: devicePixelRatio,
    screen_width: screen.width, screen_height: screen.height, colour_depth: screen.colorDepth, browser: navigator.userAgent,
  });
  await post("display", state.display);
}

function trials(source, from, until, categories = []) {
  const list = [];
  for (let number = from; number < until; number++) {
    const next = [1, 2].map(step => number + step).filter(other => other < until).map(other => [source, other]);
    list.push({ type: Recognition, source, number, category: categories[number] ?? null, next });
  }
  return list;
}

function timeline() {
  const { practice, trials: total, next, block } = state;
  const screen = (html, more = {}) => ({ type: Screen, html, ...more });
  const welcome = next ? paragraph("welcome_back", { next: next + 1, trials: total }) : paragraph("welcome");
  const list = [screen(heading("title") + welcome)];
  if (state.consent && !next) list.push(screen(state.consent, { button: "agree" }));
  if (state.degrees) list.push(screen(calibration(), { prepare: calibrate }));
  list.push(screen(heading("instructions_title") + paragraph("instructions_fixate") + paragraph("instructions_choose")
    + legend(), { prepare: () => fit }));
  if (practice.length) {
    const count = { count: practice.length };
    list.push(screen(heading("practice_title") + paragraph("practice_text", count), { button: "start" }));
    list.push(...trials("practice", 0, practice.length, practice));
  }
  if (!next) list.push(screen(heading("session_title") + paragraph("session_text", { count: total, block }),
    { button: "start" }));
  for (let from = next; from < total; from = until(from)) {
    if (from && from !== next) {
      const progress = `<progress max="${total}" value="${from}"></progress>`;
      list.push(screen(heading("pause_title") + paragraph("pause_text", { done: from, trials: total }) + progress));
    }
    list.push(...trials("session", from, until(from)));
  }
  return list;

  function until(from) {
    return Math.min(total, (Math.floor(from / block) + 1) * block);
  }
}

async function main() {
  const display = document.getElementById("display");
  let reply;
  while ((reply = await post("claim")).status !== 200) {
    display.replaceChildren(make("p", { className: "screen", textContent: reply.body.text }));
    await pause(2000);
  }
  display.replaceChildren(); // jsPsych appends to what is there
  state = reply.body;
  picture(state.practice.length ? "practice" : "session", state.practice.length ? 0 : state.next);
  layout = await navigator.keyboard?.getLayoutMap?.().catch(() => undefined);
  document.documentElement.style.setProperty("--grey", state.grey);
  document.title = text("title");
  choices.forEach((button, index) => {
    button.setAttribute("aria-label", text(GRID[index]));
    button.querySelector("kbd").textContent = letter(index);
  });
  addEventListener("pagehide", () => post("release").catch(() => {}));
  const beat = setInterval(async () => {
    const alive = await post("alive").catch(() => ({}));
    if (alive.status === 409) stop("taken");
  }, 2000);
  const jsPsych = initJsPsych({ display_element: "display" });
  await jsPsych.run(timeline());
  clearInterval(beat);
  if (document.fullscreenElement) document.exitFullscreen();
  stop("end_text", heading("end_title"));
}

main();
