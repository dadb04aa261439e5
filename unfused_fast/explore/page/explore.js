// The page of a set: what is on it comes from data/, and every text is set as text, never as HTML.

import { Player } from "./player.js";
import { Scatter } from "./scatter.js";

// Okabe and Ito's colours, which people with any colour vision tell apart; yellow and black by theme.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];
const RAMP = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"]; // viridis
const THEMES = {
  light: { ramp: RAMP, ground: "#fbfbfa", faint: "#b9bdc4", colours: [...COLOURS, "#b3a200", "#30343b"] },
  dark: { ramp: RAMP.slice(2), ground: "#14171c", faint: "#4a515c", colours: ["#3a9bdc", ...COLOURS.slice(1), "#f0e442", "#e8eaed"] },
};
const NAMED = 24; // categories with a colour and shape of their own
const STEPS = 64; // colours of a ramp
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const get = (id) => document.getElementById(id);
const state = { colour: 0, words: "", cluster: -1, category: null, chosen: null };
let about, sources, scatter, player, columns, haystack;

function make(tag, options = {}, ...children) {
  const { on, data, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data ?? {})) element.dataset[name] = value;
  if (on) element.addEventListener("click", on);
  element.append(...children.filter((child) => child !== null));
  return element;
}

async function load(name) {
  const answer = await fetch(`data/${name}`);
  if (!answer.ok) throw new Error(`data/${name}: ${answer.status}`);
  if (name.endsWith(".json")) return answer.json();
  const bytes = await answer.arrayBuffer();
  return name.endsWith(".i32") ? new Int32Array(bytes) : new Float32Array(bytes);
}

const once = new Map();
const kept = (name) => once.get(name) ?? once.set(name, load(name)).get(name);

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const clipId = (i) => (about.ids ? about.ids[i] : i);
const file = (i, kind, ending) => `${kind}/${Math.floor(clipId(i) / 1000)}/${String(clipId(i)).padStart(9, "0")}.${ending}`;
const mel = (i) => file(i, "mel", "png");
const nameOf = (column, i) => (column.names ? (column.values[i] < 0 ? null : column.names[column.values[i]]) : column.values[i]);
const column = (name) => columns.find((each) => each.name === name);
const labelOf = (i) => (column("label") ? nameOf(column("label"), i) : null);
const shownName = (name) => (name === null ? "(none)" : name === "" ? "(empty)" : name);
const number = (value) => (Number.isNaN(value) ? "" : Number(value.toPrecision(4)).toString());
const text = (column, i) => {
  const value = nameOf(column, i);
  return typeof value === "number" ? number(value) : value;
};

async function start() {
  const [read, places, files] = await Promise.all([load("explore.json"), load("map.f32"), load("sources.json")]);
  [about, sources] = [read, files];
  columns = await Promise.all(about.columns.map(async (each, n) => ({ ...each, values: await load(`column-${n}.${each.names ? "i32" : "f32"}`) })));
  const names = columns.filter((each) => each.names && each.name !== "cluster");
  haystack = sources.map((path, i) => [path, ...names.map((each) => nameOf(each, i) ?? "")].join("\n").toLowerCase());
  document.title = `${about.title} – explore`;
  get("title").textContent = about.title;
  get("subtitle").textContent = `${count(about.clips, "clip")}, ${(about.seconds / 60).toFixed(about.seconds < 600 ? 1 : 0)} minutes, embedded by ${about.encoder}`;
  get("subtitle").title = `${about.written_by}; map by ${about.map}` + (about.left_out ? `; ${count(about.left_out, "clip")} could not be decoded` : "");
  get("starting").remove();
  get("app").hidden = false;
  player = new Player((i) => file(i, "audio", "flac"), followPlayer);
  if (matchMedia("(max-width: 760px)").matches) get("legend").open = false;
  scatter = new Scatter(places, get("points"), get("marks"), { pick: (i) => pick(i, true), hover: showHover, choose });
  const preferred = ["label", "pseudo_label", "cluster"].find((name) => column(name));
  state.colour = columns.indexOf(column(preferred));
  get("colour").append(...columns.map((each, n) => make("option", { value: n, textContent: each.name.replaceAll("_", " "), selected: n === state.colour })));
  listClusters();
  listen();
  recolour();
  filter();
  makeRoom();
}

// ------------------------------------------------------------------ colours and the legend

const dark = matchMedia("(prefers-color-scheme: dark)");

function recolour() {
  const theme = THEMES[dark.matches ? "dark" : "light"];
  const shown = columns[state.colour];
  [scatter.ground, scatter.faint] = [rgb(theme.ground), rgb(theme.faint)];
  scatter.emphasis = -1;
  const body = get("legend-body");
  const labels = column("label");
  const more = (code) => (shown.name === "cluster" && about.clusters[code]?.label !== undefined ? ` · ${shownName(labels.names[about.clusters[code].label])}` : "");
  get("legend-title").textContent = shown.name.replaceAll("_", " ");
  body.replaceChildren();
  if (shown.names) {
    const counts = new Map();
    for (const code of shown.values) counts.set(code, (counts.get(code) ?? 0) + 1);
    const ordered = [...counts.keys()].filter((code) => code >= 0).sort((a, b) => counts.get(b) - counts.get(a) || a - b);
    const rank = new Map(ordered.map((code, n) => [code, Math.min(n, NAMED)]));
    rank.set(-1, NAMED + 1);
    scatter.palette = [...Array(NAMED).keys()].map((n) => rgb(theme.colours[n % 8])).concat([rgb(theme.faint), rgb(theme.faint)]);
    scatter.shapes = [...Array(NAMED).keys()].map((n) => Math.floor(n / 8)).concat([0, 2]);
    for (let i = 0; i < scatter.count; i++) scatter.codes[i] = rank.get(shown.values[i]);
    const list = make("ul", {});
    for (const code of [...ordered.slice(0, NAMED), ...(counts.has(-1) ? [-1] : [])]) {
      const place = rank.get(code);
      const name = shownName(code < 0 ? null : shown.names[code]) + more(code);
      const pressed = state.category?.column === state.colour && state.category.code === code;
      const entry = make("button", { type: "button", title: `${name}: show only these`, on: () => showOnly(code) },
        swatch(scatter.palette[place], scatter.shapes[place]), make("span", { className: "what", textContent: name }), make("span", { className: "many", textContent: counts.get(code).toLocaleString("en") }));
      entry.setAttribute("aria-pressed", pressed);
      for (const [event, code] of [["pointerenter", place], ["pointerleave", -1], ["focus", place], ["blur", -1]]) {
        entry.addEventListener(event, () => {
          scatter.emphasis = code;
          scatter.draw();
        });
      }
      list.append(make("li", {}, entry));
    }
    body.append(list);
    const rest = ordered.slice(NAMED);
    if (rest.length) body.append(make("p", { className: "hint", textContent: `and ${rest.length} more in grey, ${count(rest.reduce((sum, code) => sum + counts.get(code), 0), "clip")}; search finds them` }));
  } else {
    const sorted = shown.values.filter((value) => !Number.isNaN(value)).sort();
    const [low, high] = [sorted[Math.floor(0.02 * (sorted.length - 1))], sorted[Math.ceil(0.98 * (sorted.length - 1))]];
    scatter.palette = [...Array(STEPS).keys()].map((n) => ramp(theme.ramp, n / (STEPS - 1))).concat([rgb(theme.faint)]);
    scatter.shapes = Array(STEPS + 1).fill(0);
    shown.values.forEach((value, i) => (scatter.codes[i] = Number.isNaN(value) ? STEPS : Math.round((STEPS - 1) * Math.max(0, Math.min(1, (value - low) / (high - low || 1))))));
    const bar = make("div", { className: "ramp" });
    bar.style.background = `linear-gradient(90deg, ${theme.ramp.join(", ")})`;
    body.append(bar, make("div", { className: "ends" }, make("span", { textContent: number(low) }), make("span", { textContent: number(high) })));
  }
  scatter.draw();
}

function ramp(colours, share) {
  const part = share * (colours.length - 1);
  const at = Math.min(colours.length - 2, Math.floor(part));
  const [from, to] = [rgb(colours[at]), rgb(colours[at + 1])];
  return from.map((value, n) => value + (to[n] - value) * (part - at));
}

function swatch([red, green, blue], shape) {
  const element = make("i", { className: `swatch shape-${shape}` });
  element.style.color = `rgb(${red} ${green} ${blue})`;
  return element;
}

// ------------------------------------------------------------------ filters and selections

function showOnly(code) {
  const same = state.category?.column === state.colour && state.category.code === code;
  state.category = same ? null : { column: state.colour, code };
  filter();
  recolour();
}

function filter() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const clusters = column("cluster").values;
  const { column: by, code } = state.category ?? {};
  let left = 0;
  for (let i = 0; i < scatter.count; i++) {
    const shown = words.every((word) => haystack[i].includes(word)) && (state.cluster < 0 || clusters[i] === state.cluster) && (!state.category || columns[by].values[i] === code);
    scatter.shown[i] = shown ? 1 : 0;
    left += shown;
  }
  state.left = left;
  state.chosen = scatter.chosen = null;
  get("nothing").hidden = left > 0;
  for (const entry of document.querySelectorAll("#clusters .only")) entry.setAttribute("aria-pressed", Number(entry.dataset.cluster) === state.cluster);
  tell();
  scatter.draw();
}

function choose(clips) {
  state.chosen = clips.length ? clips : null;
  scatter.chosen = clips.length ? new Set(clips) : null;
  scatter.draw();
  tell(clips.length ? undefined : "no clip in there");
  if (clips.length) say(`${count(clips.length, "clip")} selected`);
}

function tell(instead) {
  const some = state.chosen ?? (state.left > 0 && state.left < scatter.count ? state.left : null);
  get("chosen").hidden = some === null && !instead;
  get("export").hidden = some === null;
  get("chosen-text").textContent = instead ?? (state.chosen ? `${count(state.chosen.length, "clip")} selected` : `${state.left.toLocaleString("en")} of ${count(scatter.count, "clip")} shown`);
}

function clear() {
  Object.assign(state, { words: "", cluster: -1, category: null, chosen: null });
  get("search").value = "";
  filter();
  recolour();
}

function saveCsv() {
  const clips = state.chosen ?? [...Array(scatter.count).keys()].filter((i) => scatter.shown[i]);
  const plain = (value) => (value === null || Number.isNaN(value) ? "" : value);
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = clips.map((i) => [clipId(i), sources[i], ...columns.map((each) => plain(nameOf(each, i))), scatter.points[2 * i], scatter.points[2 * i + 1]]);
  const lines = [["clip_id", "source", ...columns.map((each) => each.name), "map_x", "map_y"], ...rows].map((row) => row.map((value) => cell(String(value))).join(","));
  const address = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  make("a", { href: address, download: `${about.title}-${clips.length}-clips.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// ------------------------------------------------------------------ one clip

function showHover(i, [px, py]) {
  const card = get("hover");
  card.hidden = i < 0;
  if (i < 0) return;
  if (card.dataset.clip !== String(i)) {
    card.dataset.clip = i;
    card.querySelector("img").src = mel(i);
    card.querySelector("b").textContent = shownName(labelOf(i) ?? `cluster ${text(column("cluster"), i)}`);
    card.querySelector("span").textContent = sources[i];
  }
  const box = card.getBoundingClientRect();
  card.style.left = `${Math.max(8, Math.min(scatter.width - box.width - 8, px + 16))}px`;
  card.style.top = `${py + 20 + box.height > scatter.height ? Math.max(8, py - box.height - 16) : py + 18}px`;
}

async function pick(i, play) {
  scatter.selected = i;
  scatter.linked = [];
  scatter.reveal(i);
  openTab("clip");
  get("no-clip").hidden = true;
  get("clip").hidden = false;
  get("mel").src = mel(i);
  get("path").textContent = sources[i];
  get("facts").replaceChildren(...columns.filter((each) => nameOf(each, i) !== null && text(each, i) !== "" || each.name === "label")
    .map((each) => make("div", {}, make("dt", { textContent: each.name.replaceAll("_", " ") }), make("dd", { textContent: shownName(text(each, i)) }))));
  say(`${shownName(labelOf(i) ?? "")} ${sources[i]}`);
  if (play) player.play(i, 0);
  followPlayer();
  const [near, cosines] = await Promise.all([kept("neighbours.i32"), kept("cosines.f32")]);
  if (scatter.selected !== i) return;
  const own = [...near.subarray(i * about.neighbours, (i + 1) * about.neighbours)];
  scatter.linked = own;
  scatter.draw();
  get("neighbours").replaceChildren(...own.map((other, n) =>
    make("li", {}, make("button", { type: "button", className: "row", data: { clip: other }, title: sources[other], on: () => pick(other, true) },
      make("img", { src: mel(other), alt: "", loading: "lazy" }),
      make("span", { className: "what" }, make("b", { textContent: shownName(labelOf(other) ?? `cluster ${text(column("cluster"), other)}`) }), make("small", { textContent: tail(sources[other]) })),
      make("span", { className: "many", textContent: cosines[i * about.neighbours + n].toFixed(3) })))));
}

const tail = (path) => path.split("/").slice(-2).join("/");

function followPlayer() {
  const i = scatter?.selected ?? -1;
  if (i < 0) return;
  const own = player.clip === i;
  const { currentTime, duration } = player.audio;
  const share = own && duration ? currentTime / duration : 0;
  get("play").classList.toggle("playing", own && player.playing);
  get("play").setAttribute("aria-label", own && player.playing ? "Pause" : "Play");
  get("head").style.left = `${100 * share}%`;
  get("head").hidden = !share || share === 1;
  get("time").textContent = own && duration ? `${currentTime.toFixed(1)} / ${duration.toFixed(1)} s` : "";
  get("trouble").textContent = player.trouble;
}

// ------------------------------------------------------------------ clusters

function listClusters() {
  const label = column("label");
  const judged = about.clusters.some((each) => each.purity !== undefined);
  get("clusters-hint").textContent = `${count(about.clusters.length, "cluster")} by k-means of the embeddings, the largest first.` + (judged ? " Purity: the share of its labelled clips with the commonest label." : "");
  get("clusters").replaceChildren(...about.clusters.map((each, n) => {
    const share = make("span", { className: "bar" });
    share.style.width = `${Math.max(2, (100 * each.clips) / about.clusters[0].clips)}%`;
    const only = make("button", { type: "button", className: "only", data: { cluster: n }, title: "Show only this cluster", on: () => { state.cluster = state.cluster === n ? -1 : n; filter(); } },
      make("b", { textContent: `Cluster ${each.name}` }),
      make("span", { className: "what", textContent: each.label === undefined ? "" : shownName(label.names[each.label]) }),
      make("span", { className: "many", textContent: each.purity === undefined ? "" : `${Math.round(100 * each.purity)} % pure` }),
      make("span", { className: "many", textContent: count(each.clips, "clip") }), share);
    only.setAttribute("aria-pressed", "false");
    return make("li", {}, only, make("div", { className: "central" }, ...each.central.map((i) => {
      const button = make("button", { type: "button", data: { clip: i }, title: sources[i], on: () => { pick(i, true); openTab("clusters"); } }, make("img", { src: mel(i), alt: "", loading: "lazy" }));
      button.setAttribute("aria-label", `Play ${sources[i]}`);
      return button;
    })));
  }));
}

function openTab(name) {
  for (const each of ["clip", "clusters"]) {
    const tab = get(`tab-${each}`);
    tab.setAttribute("aria-selected", each === name);
    tab.tabIndex = each === name ? 0 : -1;
    get(`panel-${each}`).hidden = each !== name;
  }
}

// ------------------------------------------------------------------ the keyboard and the rest

const say = (what) => (get("said").textContent = what);

// The map begins beside the legend, where there is room for both.
function makeRoom() {
  const wide = get("legend").open && scatter.width > 700;
  scatter.inset = wide ? 236 : 0;
  if (!scatter.touched) scatter.fit();
}

function setTool(tool) {
  scatter.tool = tool;
  get("marks").dataset.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]:not(canvas)")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    clear();
  } else if (typing) return;
  else if (event.key === "/") get("search").focus();
  else if (event.key === " " && scatter.selected >= 0 && !event.target.matches("button, summary")) player.toggle(scatter.selected);
  else if (event.key in KEYS && event.target.matches("#marks, body")) {
    const found = scatter.next(...KEYS[event.key]);
    if (found >= 0) pick(found, false);
  } else if (event.key === "+" || event.key === "=") scatter.zoom(1.4);
  else if (event.key === "-") scatter.zoom(1 / 1.4);
  else if (event.key === "0") scatter.fit();
  else if ({ m: 1, b: 1, l: 1 }[event.key]) setTool({ m: "pan", b: "box", l: "lasso" }[event.key]);
  else return;
  event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", press);
  get("colour").addEventListener("change", (event) => {
    state.colour = Number(event.target.value);
    recolour();
  });
  let typed;
  get("search").addEventListener("input", (event) => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      state.words = event.target.value;
      filter();
    }, 120);
  });
  for (const button of document.querySelectorAll("#tools [data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  get("legend").addEventListener("toggle", makeRoom);
  get("fit").addEventListener("click", () => scatter.fit());
  get("export").addEventListener("click", saveCsv);
  for (const id of ["clear", "nothing-clear"]) get(id).addEventListener("click", clear);
  get("play").addEventListener("click", () => player.toggle(scatter.selected));
  get("picture").addEventListener("click", (event) => {
    const box = get("picture").getBoundingClientRect();
    player.play(scatter.selected, event.detail ? Math.max(0, Math.min(0.99, (event.clientX - box.left) / box.width)) : 0);
  });
  const tabs = ["clip", "clusters"];
  for (const name of tabs) get(`tab-${name}`).addEventListener("click", () => openTab(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tabs.find((name) => get(`tab-${name}`).getAttribute("aria-selected") !== "true");
    openTab(other);
    get(`tab-${other}`).focus();
  });
  dark.addEventListener("change", recolour);
}

start().catch((error) => {
  const place = get("starting") ?? document.body.appendChild(make("p", { id: "starting" }));
  place.textContent = `This page cannot be shown: ${error.message}. Make it again with unfused-fast explore … --overwrite.`;
});
