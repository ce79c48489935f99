"use strict";

// --- light and dark --------------------------------------------------------------------------------------------------

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const toggle = document.querySelector(".theme");

function remembered() {
  try { return localStorage.getItem("theme"); } catch { return null; }  // a local file may have no storage
}

function paint() {
  const theme = remembered() ?? (system.matches ? "dark" : "light");
  root.dataset.theme = theme;
  toggle.textContent = theme === "dark" ? "Light" : "Dark";
}

toggle.addEventListener("click", () => {
  const next = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", next); } catch { /* shown, but not remembered */ }
  root.dataset.theme = next;
  toggle.textContent = next === "dark" ? "Light" : "Dark";
});
system.addEventListener("change", paint);
// Paper is light.
addEventListener("beforeprint", () => {
  const theme = root.dataset.theme;
  root.dataset.theme = "light";
  addEventListener("afterprint", () => { root.dataset.theme = theme; }, { once: true });
});
paint();

// --- tables: sort and filter -----------------------------------------------------------------------------------------

const natural = new Intl.Collator("en", { numeric: true });

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
}

function isMissing(key) {
  return key === "" || key === "—" || Number.isNaN(key);
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : natural.compare(String(a), String(b));
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
  const there = rows.filter(([key]) => !isMissing(key)).sort(([a], [b]) => (descending ? compare(b, a) : compare(a, b)));
  body.append(...there.map(([, row]) => row), ...rows.filter(([key]) => isMissing(key)).map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

const everywhere = document.querySelector("#everywhere");

function filter(box) {
  const [table, field, count] = ["table", "input", "output"].map((name) => box.querySelector(name));
  const wanted = `${field?.value ?? ""} ${everywhere.value}`.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  if (count) count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

const boxes = [...document.querySelectorAll(".box")];
for (const box of boxes) {
  const table = box.querySelector("table");
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      sort(table, column, before === null ? column > 0 : before === "ascending");
    });
  });
  box.querySelector("input")?.addEventListener("input", () => filter(box));
}
everywhere.addEventListener("input", () => boxes.forEach(filter));

// What is wider than its place shows that it goes on.
function overflow() {
  for (const inner of document.querySelectorAll(".scroll")) {
    inner.parentElement.classList.toggle("more", inner.scrollLeft + inner.clientWidth < inner.scrollWidth - 4);
  }
}
document.addEventListener("scroll", overflow, { capture: true, passive: true });
addEventListener("resize", overflow);
overflow();

// --- plots: what a mark is, one method in all plots and tables, saving ------------------------------------------------

const known = new Set([...document.querySelectorAll(".plot [data-method]")].map((mark) => mark.dataset.method));
for (const row of document.querySelectorAll("tbody tr")) {
  const label = row.cells[0].querySelector("code")?.textContent;
  if (known.has(label)) row.dataset.method = label;
}

let kept;  // the method that was chosen by a click

function highlight(method) {
  root.classList.toggle("choosing", method !== undefined);
  for (const mark of document.querySelectorAll("[data-method]")) {
    mark.classList.toggle("chosen", mark.dataset.method === method);
  }
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
const rules = new CSSStyleSheet();
document.adoptedStyleSheets = [rules];

document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest?.("[data-method]");
  const text = mark?.querySelector(":scope > title")?.textContent;
  tip.hidden = !text;
  if (text) {
    tip.textContent = text;
    const left = Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4));
    rules.replaceSync(`.tip { left: ${left}px; top: ${event.clientY + 16}px; }`);
  }
  if (mark?.closest(".plot")) highlight(mark.dataset.method);
  else if (root.classList.contains("choosing")) highlight(kept);
});

document.addEventListener("click", (event) => {
  if (event.target.closest("button, summary, input, a, dialog")) return;
  const method = event.target.closest("[data-method]")?.dataset.method;
  kept = method === kept ? undefined : method;
  highlight(kept);
});

function download(name, address) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
}

// The browser prints one figure, on a page of its size; its dialog saves that as a PDF, with texts and lines.
function printOnly(figure) {
  const [width, height] = ["width", "height"].map((side) => Number(figure.querySelector(".plot").getAttribute(side)) + 40);
  const title = document.title;
  rules.replaceSync(`@page { size: ${width}px ${height}px; margin: 0; }`);
  root.classList.add("printing");
  figure.classList.add("printed");
  document.title = figure.dataset.name;
  addEventListener("afterprint", () => {
    rules.replaceSync("");
    root.classList.remove("printing");
    figure.classList.remove("printed");
    document.title = title;
  }, { once: true });
  print();
}

function drawingOf(figure) {
  const copy = figure.querySelector(".plot").cloneNode(true);
  const style = getComputedStyle(root);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("fill", "var(--ink)");
  copy.setAttribute("font-family", "DejaVu Sans, Verdana, sans-serif");
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of [["width", "100%"], ["height", "100%"], ["fill", "var(--card)"]]) paper.setAttribute(key, value);
  copy.prepend(paper);
  const text = new XMLSerializer().serializeToString(copy);
  return text.replace(/var\((--[a-z-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-save]");
  if (!button) return;
  const figure = button.closest("figure");
  if (button.dataset.save === "pdf") return printOnly(figure);
  const drawing = drawingOf(figure);
  const address = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(drawing)}`;
  if (button.dataset.save === "svg") return download(`${figure.dataset.name}.svg`, address);
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    download(`${figure.dataset.name}.png`, canvas.toDataURL("image/png"));
  };
  image.src = address;
});

// --- the runs behind a number ----------------------------------------------------------------------------------------

let unpacked;

async function unpack() {
  const packed = Uint8Array.from(atob(document.querySelector("#runs").textContent), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function positions(text) {
  return text.split(",").flatMap((part) => {
    const [first, last] = part.split("-").map(Number);
    return last === undefined ? [first] : Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

function list(values) {
  const found = document.createElement("dl");
  for (const [key, value] of values) {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = key;
    description.textContent = value;
    found.append(term, description);
  }
  return found;
}

function flat(value, prefix = "") {
  if (Array.isArray(value)) return value.flatMap((item, index) => flat(item, `${prefix}${index + 1}.`));
  if (value === null || typeof value !== "object") return [[prefix.slice(0, -1), value === null ? "—" : String(value)]];
  return Object.entries(value).flatMap(([key, item]) => flat(item, `${prefix}${key}.`));
}

function describe(run) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const scores = Object.entries(run.metrics ?? {}).map(([split, values]) => {
    const score = values[run.metric];
    return typeof score === "number" ? `${(100 * score).toFixed(2)} ${run.metric} (${split})` : `no score (${split})`;
  });
  const result = run.status === "done" ? scores.join(", ") || "no score" : run.status;
  summary.textContent = `${run.method} on ${run.task}, seed ${run.seed}: ${result}${run.collapsed ? ", collapsed" : ""}`;
  details.append(summary, list(flat(run)));
  return details;
}

const dialog = document.querySelector("dialog");

document.addEventListener("click", async (event) => {
  const button = event.target.closest("td button");
  if (event.target === dialog || event.target.closest("dialog .theme")) dialog.close();
  if (!button) return;
  unpacked ??= await unpack();
  const runs = positions(button.dataset.runs).map((index) => {
    const run = { ...unpacked.runs[index] };
    for (const key of Object.keys(unpacked.shared)) {
      if (key in run) run[key] = unpacked.shared[key][run[key]];
    }
    return run;
  });
  const title = dialog.querySelector("h2");
  title.textContent = `${button.textContent}: ${runs.length} ${runs.length === 1 ? "run" : "runs"}`;
  dialog.querySelector(".runs").replaceChildren(...runs.map(describe));
  if (runs.length === 1) dialog.querySelector("details").open = true;
  dialog.showModal();
});
