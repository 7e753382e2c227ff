// What is chosen above the list, and the beginning of it all.

function options(id, names, all) {
  const select = byId(id);
  if (all) select.append(make("option", { value: "" }, all));
  names.forEach((name, k) => select.append(make("option", { value: k }, name)));
  select.closest("label").hidden = names.length < 2;
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
}

byId("gate").textContent = index.gate;
const shares = byId("shares");
const total = (name) => index.rows.reduce((sum, of) => sum + of[name], 0);
const told = [...index.levels.map(([level, share]) => [`changed by ${level}`, share]),
  ["vanished", total("vanished") / total("counted")], ["turned", total("turned") / total("counted")]];
const many = (count) => count.toLocaleString("en");
shares.append(`${many(total("counted"))} tokens of ${many(index.rows.length)} trajectories: `);
told.forEach(([name, share], k) => shares.append(k ? ", " : "", `${name} `,
  make("b", {}, `${(100 * share).toFixed(1)} %`)));
options("colour", index.quantities.map((of) => of.label));
options("domain", index.domains, "all");
options("regime", index.regimes.map((name) => name || "no token counted"), "all");
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("input", (event) => {
  if (event.target.id === "colour") recolour();
  else draw();
});
byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
theme(matchMedia("(prefers-color-scheme: dark)").matches);
panel(null);
draw().catch((error) => {
  byId("count").textContent = `This page cannot be read: ${error.message}. Its browser must know ` +
    "DecompressionStream: Chrome 103, Firefox 113, Safari 16.4, or later.";
});
