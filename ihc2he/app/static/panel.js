// The numbers and sliders beside the image.

import { STRENGTHS } from "./drawing.js";
import { numbers, summed } from "./nuclei.js";

const $ = (id) => document.getElementById(id);
const digits = new Intl.NumberFormat("en");
const BINS = 60;
const MOST_OD = 1.5;
const GAP = 0.02; // between thresholds

export class Panel {
  constructor({ thresholds, classes }, changed) {
    this.defaults = thresholds;
    this.empty = [...classes, "unknown", "all"].map((name) => ({ name, n: null, percent: null, hscore: null }));
    this.sliders = [$("t0"), $("t1"), $("t2")];
    this.sliders.forEach((slider, i) => slider.addEventListener("input", () => { this.push(i); changed(); }));
    $("least").addEventListener("input", changed);
    $("reset").addEventListener("click", () => { this.reset(); changed(); });
    this.reset();
    this.clear();
    new ResizeObserver(() => this.histogram(this.nuclei)).observe($("histogram"));
  }

  get thresholds() { return this.sliders.map((slider) => Number(slider.value)); }
  get least() { return Number($("least").value); }

  reset() {
    this.sliders.forEach((slider, i) => { slider.value = this.defaults[i]; });
    $("least").value = 0;
  }

  // Keeps the thresholds in order around the one that is moved.
  push(moved) {
    const values = this.thresholds;
    values[moved] = Math.min(Math.max(values[moved], 0.02 + GAP * moved), MOST_OD - GAP * (2 - moved));
    for (let i = moved + 1; i < 3; i++) values[i] = Math.max(values[i], values[i - 1] + GAP);
    for (let i = moved - 1; i >= 0; i--) values[i] = Math.min(values[i], values[i + 1] - GAP);
    this.sliders.forEach((slider, i) => { slider.value = values[i].toFixed(2); });
  }

  show(nuclei) {
    this.nuclei = nuclei;
    this.showThresholds();
    const cells = nuclei.count(this.thresholds, this.least);
    const all = summed(cells);
    $("n").textContent = digits.format(all.n);
    $("percent").textContent = all.percent === null ? "–" : `${all.percent.toFixed(1)} %`;
    $("hscore").textContent = all.hscore === null ? "–" : all.hscore.toFixed(0);
    [...$("bar").children].forEach((part, i) => { part.style.width = `${all.n ? (100 * all.four[i]) / all.n : 0}%`; });
    $("bar").setAttribute("aria-label", `Negative ${all.four[0]}, weak ${all.four[1]}, moderate ${all.four[2]}, strong ${all.four[3]}`);
    $("bar").title = $("bar").getAttribute("aria-label");
    const { classes } = nuclei.field;
    const kinds = classes.map((kind, i) => ({ ...kind, ...numbers(cells[i]) }));
    const ordered = [...kinds.slice(1), kinds[0], { name: "all", ...all }];
    $("rows").replaceChildren(...ordered.map(rowOf));
    const area = nuclei.field.area_mm2;
    const ink = nuclei.field.ink >= 0.01 ? ` ${(100 * nuclei.field.ink).toFixed(0)} % is under ink and left out.` : "";
    $("area").textContent = `${digits.format(Math.round(all.n / area))} nuclei per mm² in ${area.toPrecision(3)} mm².${ink}`;
    this.histogram(nuclei);
  }

  showThresholds() {
    for (const slider of [...this.sliders, $("least")]) slider.nextElementSibling.value = Number(slider.value).toFixed(2);
  }

  histogram(nuclei) {
    const canvas = $("histogram");
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, 56];
    if (!width) return;
    [canvas.width, canvas.height] = [Math.round(width * ratio), height * ratio];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const bins = new Array(BINS).fill(0);
    for (const one of nuclei?.all ?? [])
      if (!one.gone && !one.hidden) bins[Math.min(BINS - 1, Math.max(0, Math.floor((one.dab / MOST_OD) * BINS)))]++;
    const most = Math.max(1, ...bins);
    const thresholds = this.thresholds;
    bins.forEach((count, i) => {
      const middle = ((i + 0.5) * MOST_OD) / BINS;
      context.fillStyle = STRENGTHS[thresholds.filter((threshold) => middle >= threshold).length];
      const tall = count ? Math.max(2, Math.sqrt(count / most) * (height - 4)) : 0;
      context.fillRect((i * width) / BINS + 0.5, height - tall, width / BINS - 1, tall);
    });
    context.fillStyle = getComputedStyle(document.body).color;
    for (const threshold of thresholds) context.fillRect((threshold / MOST_OD) * width - 0.5, 0, 1, height);
  }

  clear() {
    this.nuclei = null;
    for (const id of ["n", "percent", "hscore"]) $(id).textContent = "–";
    for (const part of $("bar").children) part.style.width = 0;
    $("rows").replaceChildren(...this.empty.map(rowOf));
    $("area").textContent = "\u00a0"; // as high as with a text
    this.showThresholds();
    this.histogram(null);
  }
}

function rowOf({ name, colour, n, percent, hscore }) {
  const row = document.createElement("tr");
  if (name === "all") row.className = "all";
  const head = document.createElement("th");
  head.scope = "row";
  if (colour) {
    const dot = document.createElement("i");
    dot.className = "dot";
    dot.style.background = colour;
    head.append(dot);
  }
  head.append(name);
  row.append(head);
  for (const text of [n === null ? "–" : digits.format(n), percent === null ? "–" : `${percent.toFixed(1)} %`, hscore === null ? "–" : hscore.toFixed(0)]) {
    const cell = document.createElement("td");
    cell.textContent = text;
    row.append(cell);
  }
  return row;
}
