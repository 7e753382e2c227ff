"use strict";
// Reads the page's data and shows them. Texts come onto the page as text nodes alone.

const STEPS = 6; // Of colour on either side of 0; page.css has a class for each.
const GROUPS_AT_ONCE = 12;
const ROWS_AT_ONCE = 24;
const TOKENS_AT_ONCE = 1200; // Of one completion.
const TOKENS_A_SHOWING = 6000; // Of all that is shown at once.

const index = JSON.parse(document.getElementById("index").textContent);
const blocks = new Map(); // Of group -> promise of what its block holds.
const groupOf = new Map();
index.groups.forEach((group, g) => group.rows.forEach((row, k) => groupOf.set(row, [g, k])));

const byId = (id) => document.getElementById(id);

/** An element with properties and children; a string child becomes a text node. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A number as the sentences have it: three digits, a true minus. */
function number(value) {
  if (typeof value === "string") return value;
  const size = Math.abs(value), rounded = Number(value.toPrecision(size >= 0.9 && size < 1.1 ? 5 : 3));
  const short = size > 0 && (size < 1e-4 || size >= 999.5);
  const text = short ? rounded.toExponential().replace(/\.?0*e/, "e") : String(rounded);
  return value < 0 ? text.replace("-", "−") : text;
}

function signed(value) {
  return value > 0 ? "+" + number(value) : number(value);
}

/** Reads the block of a group, once. */
function read(g) {
  if (!blocks.has(g)) blocks.set(g, unpack(byId("block-" + g).textContent, index.groups[g].rows));
  return blocks.get(g);
}

async function unpack(text, rows) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const block = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  let at = 4 + length;
  block.trajectories.forEach((trajectory, k) => {
    const count = trajectory.counted.length;
    trajectory.row = rows[k];
    trajectory.numbers = {};
    for (const quantity of index.quantities) {
      trajectory.numbers[quantity.name] = new Float32Array(bytes, at, count);
      at += 4 * count;
    }
  });
  return block;
}

/** The class of the colour of a value. */
function colour(quantity, value) {
  if (!value || Number.isNaN(value)) return "";
  const step = Math.min(STEPS, Math.ceil((Math.abs(value) / quantity.full) * STEPS));
  return (quantity.signed ? (value > 0 ? "u" : "d") : "r") + step;
}

const chosenQuantity = () => index.quantities[byId("colour").selectedIndex];

// What is shown, and in which order.

function matches(row) {
  const of = index.rows[row];
  const domain = byId("domain").value, regime = byId("regime").value, fate = byId("fate").value;
  const least = byId("least").valueAsNumber, most = byId("most").valueAsNumber;
  const drift = byId("drift").valueAsNumber;
  return (domain === "" || of.domain === Number(domain)) &&
    (regime === "" || of.regime === Number(regime)) &&
    (fate === "" || of[fate] > 0) &&
    !(of.reward < least) && !(of.reward > most) &&
    (of.reward !== null || (Number.isNaN(least) && Number.isNaN(most))) &&
    !(Math.abs(of.drift[2]) < drift);
}

const KEYS = {
  "order": (of, row) => row,
  "reward-": (of) => -of.reward,
  "reward+": (of) => of.reward,
  "drift": (of) => -Math.abs(of.drift[2]),
  "push": (of) => -of.push,
  "vanished": (of) => -of.vanished / Math.max(of.counted, 1),
  "turned": (of) => -of.turned / Math.max(of.counted, 1),
  "counted": (of) => -of.counted,
};

function selected() {
  const key = KEYS[byId("sort").value];
  const keyed = index.rows.map((of, row) => [key(of, row), row]).filter(([, row]) => matches(row));
  keyed.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return keyed.map(([, row]) => row);
}

let drawing = 0; // A later drawing ends an earlier one.

async function draw() {
  const mine = ++drawing;
  const rows = selected();
  const groups = new Map(); // In the order of their first rows.
  for (const row of rows) {
    const g = groupOf.get(row)[0];
    if (groups.has(g)) groups.get(g).push(row);
    else groups.set(g, [row]);
  }
  const beside = byId("view").value === "groups";
  byId("count").textContent = `${rows.length} of ${index.rows.length} trajectories, ` +
    `in ${groups.size} of ${index.groups.length} groups`;
  legend();
  const list = byId("list");
  const units = beside ? [...groups] : rows.map((row) => [groupOf.get(row)[0], [row]]);
  const atOnce = beside ? GROUPS_AT_ONCE : ROWS_AT_ONCE;
  let at = 0;
  /** Where the showing ends that begins there. */
  function next(from) {
    let until = from, count = 0;
    while (until < Math.min(from + atOnce, units.length) && count < TOKENS_A_SHOWING) {
      count += units[until++][1].reduce((sum, row) => sum + index.rows[row].counted, 0);
    }
    return until;
  }
  const more = make("button", { type: "button", class: "more" });
  async function show() {
    const part = units.slice(at, next(at)), first = at === 0;
    at += part.length;
    const read_ = await Promise.all(part.map(([g]) => read(g)));
    if (mine !== drawing) return;
    const made = part.map(([g, of], k) => group(g, of, read_[k]));
    if (first) list.replaceChildren(...made);
    else made.forEach((each) => list.insertBefore(each, more));
    more.remove();
    if (at < units.length) {
      more.textContent = `Show more: ${units.length - at} left`;
      list.append(more);
    }
    if (!units.length) list.append(make("p", { class: "empty" }, "None is like that."));
    document.documentElement.dataset.drawn = String(mine);
  }
  more.addEventListener("click", show);
  await show();
}

function group(g, rows, block) {
  const of = index.groups[g];
  const heading = make("h2", {},
    make("span", {}, `group ${g}`),
    make("span", {}, index.domains[index.rows[of.rows[0]].domain]),
    make("span", {}, `${rows.length} of ${of.rows.length} completions`));
  if (block.answer) heading.append(make("span", {}, `answer ${block.answer}`));
  const section = make("article", { class: "group", "aria-label": `Group ${g}` }, heading);
  if (block.prompt) section.append(make("div", { class: "prompt", "aria-label": "Prompt", tabindex: "0" },
    lines(block.prompt)));
  const beside = make("div", { class: "beside" });
  for (const row of rows) beside.append(completion(row, block, g));
  section.append(beside);
  return section;
}

/** Breaks lines where the sign of a line's end stands; fonts have the arrow. */
const lines = (text) => text.replaceAll("␊", "↵\n");

function completion(row, block, g) {
  const of = index.rows[row], trajectory = block.trajectories[groupOf.get(row)[1]];
  const head = make("h3", {}, make("b", {}, `#${of.row}`));
  const chip = (text, title) => head.append(make("span", { class: "chip", title }, text));
  if (of.reward !== null) chip(`reward ${number(of.reward)}`, "of the trajectory");
  const regime = index.regimes[of.regime];
  if (regime) chip(regime, "regime");
  chip(`drift ${signed(of.drift[2])}`,
    `mean log ratio, nats a token: up ${number(of.drift[0])}, down ${number(of.drift[1])}`);
  if (of.vanished) chip(`${of.vanished} of ${of.counted} vanished`, "tokens");
  if (of.turned) chip(`${of.turned} of ${of.counted} turned`, "tokens");
  if (trajectory.extracted !== null) chip(`took ${trajectory.extracted}`, "as the answer");
  if (trajectory.finished === false) chip("cut", "by the window");
  const box = make("div", { class: "tokens", role: "listbox", "aria-label":
    `Tokens of completion ${of.row}, group ${g}`, "aria-orientation": "horizontal" });
  fill(box, trajectory, block, 0);
  return make("section", { class: "row", "aria-label": `Completion ${of.row}`, "data-row": row },
    head, box);
}

function fill(box, trajectory, block, from) {
  const quantity = chosenQuantity(), values = trajectory.numbers[quantity.name];
  const until = Math.min(trajectory.ids.length, from + TOKENS_AT_ONCE);
  const counted = new Map(trajectory.counted.map((column, k) => [column, k]));
  const parts = [];
  for (let column = from; column < until; column++) {
    const k = counted.get(column);
    let text = lines(trajectory.texts[column]);
    if (/^ +$/.test(text)) text = text.replaceAll(" ", "·");
    if (k === undefined) {
      parts.push(make("span", { class: "said" }, text));
      continue;
    }
    const fate = index.fates[trajectory.fate[k]];
    const span = make("span", { role: "option", "aria-selected": "false",
      tabindex: k === 0 ? "0" : "-1", "aria-label": `${text || "part of a character"}, ${fate}` }, text || "·");
    span.className = ["t", colour(quantity, values[k]), fate].join(" ");
    span.token = { trajectory, block, k };
    parts.push(span);
  }
  box.append(...parts);
  if (until < trajectory.ids.length) {
    const more = make("button", { type: "button", class: "more" },
      `Show ${trajectory.ids.length - until} more tokens`);
    more.addEventListener("click", () => { more.remove(); fill(box, trajectory, block, until); });
    box.append(more);
  }
}

/** New colours on what is there. */
function recolour() {
  const quantity = chosenQuantity();
  for (const span of document.querySelectorAll("#list .t")) {
    const { trajectory, k } = span.token;
    const fate = index.fates[trajectory.fate[k]];
    const chosen = span.classList.contains("chosen") ? "chosen" : "";
    span.className = ["t", colour(quantity, trajectory.numbers[quantity.name][k]), fate, chosen].join(" ");
  }
  legend();
}

function legend() {
  const quantity = chosenQuantity(), bar = make("span", { class: "bar" });
  const steps = [...Array(STEPS).keys()].map((k) => k + 1);
  if (quantity.signed) steps.slice().reverse().forEach((k) => bar.append(make("i", { class: "d" + k })));
  bar.append(make("i", {}));
  steps.forEach((k) => bar.append(make("i", { class: (quantity.signed ? "u" : "r") + k })));
  const ends = quantity.signed
    ? [`${signed(-quantity.full)} and below`, `${signed(quantity.full)} and above`]
    : ["0", `${number(quantity.full)} and above`];
  byId("legend").replaceChildren(
    make("span", { class: "scale" }, ends[0], bar, ends[1]),
    make("span", {}, `${quantity.label}: ${quantity.meaning}`),
    make("span", { class: "vanished" }, "vanished: nothing is left"),
    make("span", { class: "turned" }, "turned: pushed the other way"),
    make("span", {}, "∎ end of sequence"),
    make("span", { class: "said" }, "said by others, not counted"));
}
