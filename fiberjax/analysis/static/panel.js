// The chosen token: its numbers, and why its gradient is what it is.

let pinned = null; // The span that was clicked or has the focus.

function panel(span) {
  const aside = byId("panel");
  if (!span) {
    aside.replaceChildren(make("h2", {}, "No token is chosen"), make("p", { class: "empty" },
      "Point at a token, or go to one with Tab and the arrow keys: its numbers and the reasons " +
      "for its gradient stand here. Enter or a click keeps it."));
    return;
  }
  const { trajectory, block, k } = span.token, column = trajectory.counted[k];
  const of = index.rows[trajectory.row], fate = index.fates[trajectory.fate[k]];
  const turn = trajectory.turn ? `, turn ${trajectory.turn[column]}` : "";
  const why = make("ol", { id: "why" });
  for (const number_ of trajectory.why[k]) {
    const [part, text, shut] = block.sentences[number_];
    const last = part === "left", closed = shut && part !== "composition";
    why.append(make("li", { class: (shut ? "shut" : "") + (last ? "left" : "") },
      make("span", { class: "part" }, part + (closed ? ", closed" : "")), text));
  }
  aside.replaceChildren(
    make("h2", {}, make("span", { class: "piece" }, lines(trajectory.texts[column]).trimEnd() || "·"), ` ${fate}`),
    make("p", { class: "where" }, `token ${k + 1} of ${trajectory.counted.length}, id ` +
      `${trajectory.ids[column]}, completion ${of.row}, group ${groupOf.get(trajectory.row)[0]}${turn}`),
    make("h3", {}, "Why"), why,
    make("h3", {}, "The coefficient, part by part"), parts(trajectory, k),
    make("h3", {}, "All numbers"), numbers(trajectory, k));
}

function parts(trajectory, k) {
  const names = [...index.parts, "coefficient"];
  const values = names.map((name) => trajectory.numbers[name][k]);
  const most = Math.max(...values.map(Math.abs)) || 1;
  const body = make("tbody", {});
  names.forEach((name, n) => {
    const label = n + 1 === names.length ? "left" : index.quantities.find((of) => of.name === name).label;
    body.append(make("tr", n + 1 === names.length ? { class: "sum" } : {},
      make("th", { scope: "row" }, label), make("td", {}, signed(values[n])),
      make("td", { class: "track" }, bar(values[n] / most))));
  });
  return make("table", { id: "parts" }, body);
}

/** A bar from the middle; `share` in [−1, 1]. */
function bar(share) {
  const svg = (tag, properties) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    return element;
  };
  const drawing_ = svg("svg", { viewBox: "0 0 200 12", preserveAspectRatio: "none", "aria-hidden": "true" });
  const width = Math.abs(share) * 98;
  drawing_.append(
    svg("rect", { class: share > 0 ? "up" : "down", x: share > 0 ? 100 : 100 - width, y: 2, width, height: 8 }),
    svg("line", { class: "axis", x1: 100, x2: 100, y1: 0, y2: 12 }));
  return drawing_;
}

function numbers(trajectory, k) {
  const body = make("tbody", {});
  for (const quantity of index.quantities) {
    const value = trajectory.numbers[quantity.name][k];
    body.append(make("tr", {}, make("th", { scope: "row", title: quantity.meaning }, quantity.label),
      make("td", { "data-name": quantity.name, "data-value": String(value) },
        quantity.signed ? signed(value) : number(value))));
  }
  return make("table", { id: "numbers" }, body);
}

function choose(span) {
  if (pinned) {
    pinned.classList.remove("chosen");
    pinned.setAttribute("aria-selected", "false");
  }
  pinned = span;
  panel(span);
  if (!span) return;
  for (const other of span.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  span.tabIndex = 0;
  span.classList.add("chosen");
  span.setAttribute("aria-selected", "true");
  const { trajectory, block, k } = span.token;
  const last = block.sentences[trajectory.why[k].at(-1)];
  byId("said").textContent = `Coefficient ${signed(trajectory.numbers.coefficient[k])}. ${last[1]}`;
}

const tokenOf = (event) => event.target.closest && event.target.closest("#list .t");

byId("list").addEventListener("mouseover", (event) => {
  const span = tokenOf(event);
  if (span) panel(span);
});
byId("list").addEventListener("mouseout", (event) => { if (tokenOf(event)) panel(pinned); });
byId("list").addEventListener("click", (event) => {
  const span = tokenOf(event);
  if (span) span.focus();
});
byId("list").addEventListener("focusin", (event) => {
  const span = tokenOf(event);
  if (span) choose(span);
});
byId("list").addEventListener("keydown", (event) => {
  const span = tokenOf(event);
  if (!span) return;
  const all = [...span.parentElement.querySelectorAll(".t")], at = all.indexOf(span);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
    End: all.length - 1 }[event.key];
  if (event.key === "Escape") choose(null);
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  all[to].focus();
});
