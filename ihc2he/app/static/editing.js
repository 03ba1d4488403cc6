// Tools, selection and keys: adding, removing and labelling nuclei.

import { post } from "./api.js";
import { bounded } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 8; // px on the screen that the cross moves; with Shift four times as far

export class Editing {
  // `app` has viewer, overlay, nuclei, fieldId, changed(), analyse(), fail() and say().
  constructor(app) {
    this.app = app;
    this.tool = "select";
    this.type = 1;
    this.cross = null;
    this.busy = Promise.resolve();
    this.byKeys = false; // whether the last nucleus was reached by arrow keys
    for (const button of document.querySelectorAll("#tools [data-tool]"))
      button.addEventListener("click", () => this.use(button.dataset.tool));
    $("undo").addEventListener("click", () => this.undo());
    $("chosen-remove").addEventListener("click", () => this.remove(this.selected));
    app.viewer.osd.addHandler("canvas-click", (event) => {
      if (!event.quick) return;
      event.preventDefaultAction = true;
      this.click(event.position.x, event.position.y);
    });
    document.addEventListener("keydown", (event) => this.key(event));
    this.region();
  }

  get nuclei() { return this.app.nuclei; }
  get selected() { return this.app.overlay.selected; }

  use(tool) {
    if (tool !== "select" && tool !== "region" && !this.nuclei) return;
    this.tool = tool;
    for (const button of document.querySelectorAll("#tools [data-tool]"))
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    $("lasso").hidden = tool !== "region";
    $("rectangle").style.display = "none";
    this.cross = null;
    $("cross").hidden = true;
    if (tool !== "select") this.select(null);
    this.showTypes();
  }

  // ---------------------------------------------------------------- selection and types

  // With `reveal` the image moves so that the nucleus is seen, for those who do not click it.
  select(one, reveal = false) {
    this.app.overlay.selected = one;
    this.app.overlay.later();
    this.showTypes();
    if (one) {
      if (reveal) this.app.viewer.reveal(one.x, one.y);
      this.app.say(this.described(one));
    }
  }

  described(one) {
    const strength = ["negative", "weak", "moderate", "strong"][one.strength];
    return `${this.nuclei.field.classes[one.type].name}, ${strength}, DAB ${one.dab.toFixed(2)}, ${one.area.toFixed(0)} µm², score ${one.score.toFixed(2)}`;
  }

  showTypes() {
    const one = this.selected && !this.selected.gone ? this.selected : null;
    const brush = this.tool === "add" || this.tool === "label";
    const classes = this.nuclei?.field.classes ?? [];
    $("chosen").hidden = !this.nuclei || !(one || brush || this.tool === "remove");
    if ($("chosen").hidden) return;
    $("chosen-text").textContent = one ? this.described(one).split(", ").slice(1).join(" · ")
      : { add: "Click where a nucleus is missing", label: "Click nuclei of this type", remove: "Click nuclei that are none" }[this.tool];
    $("chosen-remove").hidden = !one;
    $("types").hidden = this.tool === "remove" && !one;
    const current = one ? one.type : this.type;
    const kinds = classes.length > 1 ? classes.map((kind, i) => ({ ...kind, i })).slice(1) : [];
    $("types").replaceChildren(...kinds.map(({ name, colour, i }) => {
      const button = document.createElement("button");
      const [dot, key] = [document.createElement("i"), document.createElement("kbd")];
      dot.className = "dot";
      dot.style.cssText = "margin:0";
      dot.style.background = colour;
      key.textContent = i;
      button.append(dot, name, key);
      button.setAttribute("aria-pressed", String(i === current));
      button.addEventListener("click", () => this.choose(i));
      return button;
    }));
  }

  choose(type) {
    if (!this.nuclei || type >= this.nuclei.field.classes.length) return;
    if (this.selected && !this.selected.gone) {
      this.nuclei.label(this.selected, type);
      this.app.changed();
      this.app.say(`Now ${this.nuclei.field.classes[type].name}`);
    } else this.type = type;
    this.showTypes();
  }

  // ---------------------------------------------------------------- corrections

  click(x, y) {
    if (!this.nuclei) return;
    this.byKeys = false;
    const at = this.app.viewer.toImage(x, y);
    const one = this.nuclei.at(...at);
    if (this.tool === "add") { if (one) this.app.say("There is a nucleus already"); else this.add(...at); return; }
    if (this.tool === "remove") { this.remove(one); return; }
    if (this.tool === "label") {
      if (one) { this.nuclei.label(one, this.type); this.app.changed(); }
      return;
    }
    this.select(one);
  }

  // One after the other, because each depends on those before.
  add(x, y) {
    const { fieldId, nuclei } = this.app;
    const type = nuclei.field.classes.length > 1 ? this.type : 0;
    const edit = { do: "add", type, x, y };
    this.busy = this.busy.then(async () => {
      if (nuclei !== this.app.nuclei) return;
      const at = nuclei.edits.length;
      try {
        const added = await post(`api/fields/${fieldId}/edits`, { edits: [...nuclei.sent, edit], known: nuclei.known });
        if (nuclei !== this.app.nuclei) return;
        const one = nuclei.insert(edit, added, at);
        this.app.changed();
        this.app.say(`Added: ${this.described(one)}`);
      } catch (error) { this.app.fail(error); }
    });
    return this.busy;
  }

  remove(one) {
    if (!one || one.gone) return;
    this.nuclei.remove(one);
    const next = this.tool === "select" ? this.nuclei.closest(one.x, one.y) : null;
    this.app.changed();
    this.select(this.byKeys ? next : null, true);
    this.app.say("Removed");
  }

  undo() {
    this.busy = this.busy.then(() => {
      if (!this.nuclei?.edits.length) return;
      const one = this.nuclei.undo();
      this.app.changed();
      this.select(one && !one.gone && this.tool === "select" ? one : null, this.byKeys);
      this.app.say("Undone");
    });
    return this.busy;
  }

  // ---------------------------------------------------------------- keys

  key(event) {
    if (event.target.closest?.("input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea, dialog") || event.altKey) return;
    const { viewer } = this.app;
    if (!viewer.base) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && key !== "z") return;
    const onImage = document.activeElement === viewer.osd.canvas;
    let done = true;
    if (key in ARROWS && onImage) this.arrow(ARROWS[key], event.shiftKey);
    else if (key === "Enter" && onImage && this.cross) this.add(...viewer.toImage(...this.cross));
    else if (key === "Escape") this.use(this.tool === "select" ? (this.select(null), "select") : "select");
    else if (key === "a" && this.nuclei) this.startCross();
    else if (key === "r" && this.nuclei) { if (this.selected && !this.selected.gone) this.remove(this.selected); else this.use("remove"); }
    else if (key === "z") this.undo();
    else if (key >= "1" && key <= "9") this.choose(Number(key));
    else if (key === "+" || key === "=") viewer.zoom(1.4);
    else if (key === "-") viewer.zoom(1 / 1.4);
    else if (key === "0") viewer.home();
    else done = this.app.key(key);
    if (done) event.preventDefault();
  }

  startCross() {
    this.use("add");
    const { clientWidth, clientHeight } = this.app.viewer.osd.element;
    this.moveCross(clientWidth / 2, clientHeight / 2);
    this.app.viewer.osd.canvas.focus();
  }

  moveCross(x, y) {
    const { clientWidth, clientHeight } = this.app.viewer.osd.element;
    this.cross = [Math.min(Math.max(x, 0), clientWidth - 1), Math.min(Math.max(y, 0), clientHeight - 1)];
    $("cross").hidden = false;
    [$("cross").style.left, $("cross").style.top] = this.cross.map((at) => `${at}px`);
  }

  arrow([dx, dy], shift) {
    const { viewer } = this.app;
    this.byKeys = true;
    if (this.cross) { const step = STEP * (shift ? 4 : 1); this.moveCross(this.cross[0] + dx * step, this.cross[1] + dy * step); return; }
    if (shift || !this.nuclei) { viewer.pan(dx, dy); return; }
    const one = this.selected && !this.selected.gone ? this.selected : null;
    const { clientWidth, clientHeight } = viewer.osd.element;
    const next = one ? this.nuclei.towards(one, [dx, dy]) : this.nuclei.closest(...viewer.toImage(clientWidth / 2, clientHeight / 2));
    if (next) this.select(next, true);
  }

  // ---------------------------------------------------------------- drawing a region

  region() {
    const [lasso, rectangle] = [$("lasso"), $("rectangle")];
    let start = null;
    const place = (event) => {
      const box = lasso.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const corners = (event) => {
      const [x, y] = place(event);
      return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    };
    lasso.addEventListener("pointerdown", (event) => { start = place(event); lasso.setPointerCapture(event.pointerId); });
    lasso.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [left, top, right, bottom] = corners(event);
      Object.assign(rectangle.style, { display: "block", left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
    });
    lasso.addEventListener("pointerup", (event) => {
      if (!start) return;
      const [left, top, right, bottom] = corners(event);
      start = null;
      const { viewer } = this.app;
      const region = bounded(viewer.image, ...viewer.toImage(left, top), ...viewer.toImage(right, bottom));
      this.use("select");
      if (region.width >= 16 && region.height >= 16) this.app.analyse(region);
    });
    lasso.addEventListener("pointercancel", () => { start = null; rectangle.style.display = "none"; });
  }
}
