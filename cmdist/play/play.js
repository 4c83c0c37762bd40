"use strict";
// What the page does. Its server knows what is allowed and says what is wrong; here are only the controls.

const WAY = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1];
const ENTRIES = 6; // pictures of the sample panel, 3 of them beside the second model
const $ = (id) => document.getElementById(id);
const models = {};
const board = $("board"), picture = document.createElement("canvas"), mask = document.createElement("canvas");

async function ask(action, message) {
  let reply;
  try {
    reply = await fetch(action, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message),
    });
  } catch {
    throw new Error("the server of this page does not answer: does pipelines/play.py still run?");
  }
  const body = await reply.json();
  if (body.error) throw new Error(body.error);
  return body;
}

// One request of a panel at a time: what changes meanwhile is asked for after it, once. Resolves when all is shown.
function panel(id, work) {
  const node = $(id), error = node.querySelector(".error");
  let running = null, again = false;
  async function run() {
    node.classList.add("busy");
    do {
      again = false;
      try {
        const told = await work();
        error.textContent = "";
        if (told) node.querySelector(".told").textContent = told;
        node.classList.remove("failed");
      } catch (problem) {
        error.textContent = problem.message;
        node.classList.add("failed");
      }
    } while (again);
    node.classList.remove("busy");
    running = null;
  }
  return () => {
    if (running) again = true; else running = run();
    return running;
  };
}

const whole = (id) => ($(id).value.trim() === "" ? null : Number($(id).value));
const label = () => (models.first.classes ? Number($("label").value) : null);
// One scale for both models; one that knows no class is not guided.
const guidance = (slot) => (models[slot].guided && whole("guidance") !== null ? whole("guidance") : 1);
const seconds = (...replies) => `${replies.reduce((sum, reply) => sum + reply.seconds, 0).toFixed(2)} s`;

function show(id, images, captions) {
  $(id).replaceChildren(...images.map((src, i) => {
    const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
    image.src = src;
    image.alt = caption.textContent = captions[i];
    figure.append(image, caption);
    return figure;
  }));
}

// ---- models

const open = panel("models", async () => {
  const slot = $("slot").value;
  models[slot] = await ask("open", { slot, run: $("run").value, weights: $("weights").value || null });
  fill(slot);
  await (slot === "first" ? fresh() : sample());
});

function fill(slot) {
  const model = models[slot];
  $(`${slot}-title`).textContent = `${model.title} (${model.objective}, ${model.size} x ${model.size})`;
  $(slot === "first" ? "steps" : "beside-steps").value = model.steps;
  if (slot === "second") return;
  $("labelled").hidden = !model.classes;
  $("guided").hidden = !model.guided;
  $("label").replaceChildren(...Array.from({ length: model.classes }, (_, i) => new Option(i)));
  $("levels").max = model.grid.length;
  for (const canvas of [board, picture, mask]) canvas.width = canvas.height = model.size;
  white();
  sliders();
  levels();
}

// A sample, whose middle half is made anew.
async function fresh() {
  await sample();
  await take();
  const quarter = models.first.size / 4;
  painter(mask).fillStyle = "#fff";
  painter(mask).fillRect(quarter, quarter, 2 * quarter, 2 * quarter);
  draw();
  await Promise.all([between(), edit()]);
}

// ---- samples

const log = (sigma) => Math.log(sigma / models.first.sigma_min) / Math.log(models.first.sigma_max / models.first.sigma_min);
const sigma = (place) => {
  const { sigma_min: least, sigma_max: most } = models.first;
  return Number((least * (most / least) ** place).toPrecision(3));
};

// The first level is sigma_max; the others are the configuration's where it has so many, else evenly spread.
function sliders() {
  const n = Number($("steps").value) || 1, given = models.first.times;
  const level = (i) => (given.length === n ? given[i] : sigma(1 - (0.75 * i) / n));
  $("times").replaceChildren(...Array.from({ length: n - 1 }, (_, i) => {
    const holder = document.createElement("label"), slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.005, id: `time-${i + 1}` });
    slider.value = log(level(i + 1));
    holder.append(`time ${i + 2}`, slider, document.createElement("output"));
    return holder;
  }));
  outputs();
}

function times() {
  return [models.first.sigma_max, ...[...$("times").querySelectorAll("input")].map((s) => sigma(Number(s.value)))];
}

function outputs() {
  for (const output of document.querySelectorAll("output")) {
    const input = output.previousElementSibling;
    output.textContent = $("times").contains(input) ? sigma(Number(input.value)) : input.value;
  }
}

const asked = (slot) => ({ slot, times: times(), label: label(), guidance: guidance(slot) });

const sample = panel("sample", async () => {
  const seed = whole("seed"), beside = $("beside").checked, count = beside ? 3 : ENTRIES;
  const first = await ask("sample", { ...asked("first"), steps: $("steps").value, seed, count });
  const captions = first.images.map((_, i) => `seed ${seed + i}`);
  show("samples", first.images, captions);
  if (!beside) {
    show("besides", [], []);
    return `${count} pictures in ${seconds(first)}`;
  }
  show("besides", [], []);
  const second = await ask("sample", { ...asked("second"), steps: $("beside-steps").value, seed, count });
  show("besides", second.images, captions);
  return `${models.first.title} above in ${seconds(first)}, ${models.second.title} below in ${seconds(second)}`;
});

const between = panel("between", async () => {
  const shares = [...WAY, Number($("share").value)];
  const ends = { seed: whole("from"), other: whole("to") };
  const reply = await ask("between", { ...asked("first"), steps: $("steps").value, ...ends, shares });
  show("way", reply.images, shares.map((share) => share.toFixed(2)));
  return `${shares.length} pictures in ${seconds(reply)}`;
});

// ---- edits

const base64 = (address) => address.slice(address.indexOf(",") + 1);
const painter = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

const edit = panel("edit", async () => {
  const task = $("task").value, shown = task === "inpaint" ? base64(inBlackAndWhite().toDataURL()) : null;
  const levels = $("edit-times").value.split(/[\s,]+/).filter(Boolean).map(Number);
  if (levels.some(Number.isNaN)) throw new Error("times: numbers with spaces between them are needed");
  const seed = whole("edit-seed");
  const reply = await ask("edit", {
    task, seed, count: whole("count"), label: label(), guidance: guidance("first"), mask: shown, picture: base64(picture.toDataURL()),
    times: task === "denoise" ? null : levels, patch: whole("patch"), sigma: whole("sigma"),
    add_noise: $("add-noise").checked,
  });
  show("edits", [reply.known, ...reply.images], ["known", ...reply.images.map((_, i) => `seed ${seed + i}`)]);
  const kept = ["stroke", "denoise"].includes(task) ? "" : `; the known part kept to ${reply.kept.toExponential(1)}`;
  return `${reply.images.length} pictures in ${seconds(reply)}${kept}`;
});

function levels() {
  const { grid, stroke } = models.first, n = Number($("levels").value), task = $("task").value;
  const even = Array.from({ length: n }, (_, i) => grid[Math.floor((i * grid.length) / n)]);
  $("edit-times").value = (task === "stroke" ? stroke : even).map((level) => Number(level.toPrecision(4))).join(" ");
  for (const node of document.querySelectorAll(".for")) node.hidden = !node.classList.contains(task);
  outputs();
}

// The mask is clear where the picture is known.
function inBlackAndWhite() {
  const made = document.createElement("canvas");
  made.width = made.height = mask.width;
  const paint = painter(made);
  paint.fillRect(0, 0, made.width, made.height);
  paint.drawImage(mask, 0, 0);
  return made;
}

function draw() {
  const paint = painter(board);
  paint.globalAlpha = 1;
  paint.drawImage(picture, 0, 0);
  paint.globalAlpha = 0.6;
  if ($("task").value === "inpaint") paint.drawImage(mask, 0, 0);
}

function white() {
  painter(picture).fillStyle = "#fff";
  painter(picture).fillRect(0, 0, picture.width, picture.height);
  draw();
}

async function put(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  painter(picture).drawImage(image, 0, 0);
  draw();
}

const upload = panel("upload", async () => {
  const file = $("file").files[0];
  if (!file) return;
  const bytes = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(base64(reader.result));
    reader.onerror = () => failed(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  await put((await ask("upload", { name: file.name, content: bytes, fit: $("fit").checked })).image);
  edit();
});

// A round brush without soft edges, centred on pixel (x, y).
function dab(x, y) {
  const [canvas, colour] = { mask: [mask, "#fff"], keep: [mask, null], stroke: [picture, $("colour").value] }[$("brush").value];
  const paint = painter(canvas), d = Number($("width").value), r = d / 2, first = Math.ceil(-r);
  paint.fillStyle = colour ?? "#000";
  for (let dy = first; dy < first + d; dy++) {
    for (let dx = first; dx < first + d; dx++) {
      if (Math.hypot(dx - first - (d - 1) / 2, dy - first - (d - 1) / 2) > r) continue;
      if (colour === null) paint.clearRect(x + dx, y + dy, 1, 1); else paint.fillRect(x + dx, y + dy, 1, 1);
    }
  }
}

let last = null;

function stroke(event) {
  const place = board.getBoundingClientRect(), scale = board.width / place.width;
  const x = Math.floor((event.clientX - place.left) * scale), y = Math.floor((event.clientY - place.top) * scale);
  const from = last ?? [x, y], n = Math.max(1, Math.abs(x - from[0]), Math.abs(y - from[1]));
  for (let i = 0; i <= n; i++) dab(Math.round(from[0] + ((x - from[0]) * i) / n), Math.round(from[1] + ((y - from[1]) * i) / n));
  last = [x, y];
  draw();
}

board.addEventListener("pointerdown", (event) => { board.setPointerCapture(event.pointerId); stroke(event); });
board.addEventListener("pointermove", (event) => { if (last) stroke(event); });
board.addEventListener("pointerup", () => { last = null; edit(); });
board.addEventListener("pointercancel", () => { last = null; });

$("clear").addEventListener("click", () => { painter(mask).clearRect(0, 0, mask.width, mask.height); draw(); edit(); });
$("invert").addEventListener("click", () => {
  const paint = painter(mask);
  paint.globalCompositeOperation = "xor";
  paint.fillStyle = "#fff";
  paint.fillRect(0, 0, mask.width, mask.height);
  paint.globalCompositeOperation = "source-over";
  draw();
  edit();
});
$("white").addEventListener("click", () => { uploadless(); white(); edit(); });
$("take").addEventListener("click", async () => { uploadless(); await take(); edit(); });
$("file").addEventListener("change", upload);
$("fit").addEventListener("change", upload);

function uploadless() {
  $("file").value = $("upload").querySelector(".error").textContent = "";
}

async function take() {
  const image = $("samples").querySelector("img");
  if (image) await put(image.src);
}

// ---- what changes what

function on(type, ids, act) {
  for (const id of ids) $(id).addEventListener(type, act);
}

document.addEventListener("input", outputs);
on("input", ["seed", "label", "guidance", "times", "beside-steps"], sample);
on("change", ["beside"], sample);
on("input", ["from", "to", "share", "label", "guidance", "times"], between);
on("change", ["steps"], () => { sliders(); sample(); between(); });
on("input", ["edit-seed", "count", "edit-times", "patch", "sigma", "add-noise", "label", "guidance"], edit);
on("input", ["levels"], () => { levels(); edit(); });
on("change", ["task"], () => {
  levels();
  $("brush").value = $("task").value === "stroke" ? "stroke" : "mask";
  draw();
  edit();
});
$("next").addEventListener("click", () => { $("seed").value = Number($("seed").value) + ENTRIES; sample(); });
$("open").addEventListener("submit", (event) => { event.preventDefault(); open(); });

async function start() {
  for (const id of ["steps", "beside-steps"]) $(id).append(...["heun", 1, 2, 3, 4, 5].map((steps) => new Option(steps)));
  models.first = await ask("describe", { slot: "first" });
  fill("first");
  try {
    models.second = await ask("describe", { slot: "second" });
    fill("second");
  } catch {
    $("second-title").textContent = "none";
  }
  await fresh();
  document.body.dataset.ready = "yes";
}

start().catch((problem) => { $("models").querySelector(".error").textContent = problem.message; });
