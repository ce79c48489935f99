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

function filter(table, words, count) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

for (const box of document.querySelectorAll(".box")) {
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
  const field = box.querySelector("input");
  if (field) field.addEventListener("input", () => filter(table, field.value, box.querySelector("output")));
}

const everywhere = document.querySelector("#everywhere");
if (everywhere) {
  everywhere.addEventListener("input", () => {
    for (const field of document.querySelectorAll(".box input")) {
      field.value = everywhere.value;
      field.dispatchEvent(new Event("input"));
    }
  });
}

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
  summary.textContent = `${run.method} on ${run.task}, seed ${run.seed}: ${run.status}`;
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
