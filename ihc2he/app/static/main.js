// The page: opening images, analysing them, and showing what was found.

import { Gone, Offline, get, post, remove, result, upload } from "./api.js";
import { Overlay } from "./drawing.js";
import { Editing } from "./editing.js";
import { Nuclei } from "./nuclei.js";
import { Panel } from "./panel.js";
import { Recovery } from "./recovery.js";
import { Saving } from "./saving.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);

class App {
  async start() {
    this.facts = await get("api/start");
    this.image = this.nuclei = this.fieldId = this.how = this.asked = null;
    this.overlay = new Overlay($("overlay"), () => this.viewer.view());
    this.viewer = new Viewer($("viewer"), () => { this.overlay.later(); this.checkView(); });
    this.panel = new Panel(this.facts, () => this.recount());
    this.editing = new Editing(this);
    this.saving = new Saving(this);
    this.recovery = new Recovery(this);
    this.saving.start(this.facts);
    $("translator").replaceChildren(...this.facts.translators.map((name) => new Option(name === "none" ? "no" : name, name)));
    this.listen();
    this.enable();
    if (this.facts.files) this.listFiles();
    this.recovery.heartbeat();
  }

  listen() {
    $("choose").addEventListener("click", () => $("file").click());
    $("open-another").addEventListener("click", () => { if (this.dropping()) this.close(); });
    $("file").addEventListener("change", () => { if ($("file").files[0]) this.open({ file: $("file").files[0] }); $("file").value = ""; });
    $("sample").addEventListener("click", () => this.open({ sample: true }));
    for (const event of ["dragover", "dragenter"])
      addEventListener(event, (drag) => { drag.preventDefault(); document.body.classList.add("dropping"); });
    addEventListener("dragleave", (drag) => { if (!drag.relatedTarget) document.body.classList.remove("dropping"); });
    addEventListener("drop", (drag) => {
      drag.preventDefault();
      document.body.classList.remove("dropping");
      if (drag.dataTransfer.files[0]) this.open({ file: drag.dataTransfer.files[0] });
    });
    $("zoom-in").addEventListener("click", () => this.viewer.zoom(1.6));
    $("zoom-out").addEventListener("click", () => this.viewer.zoom(1 / 1.6));
    $("zoom-home").addEventListener("click", () => this.viewer.home());
    $("banner-close").addEventListener("click", () => this.tell(null));
    $("help-open").addEventListener("click", () => $("help").showModal());
    $("outlines").addEventListener("change", (event) => { this.overlay.outlines = event.target.value; this.overlay.later(); });
    $("map").addEventListener("change", () => this.showMap());
    $("base").addEventListener("change", (event) => this.showBase(event.target.value));
    $("curtain").addEventListener("input", () => this.showBase("both"));
    $("translator").addEventListener("change", () => this.translate());
    $("analyse-go").addEventListener("click", () => this.analyse(this.viewer.visible()));
    $("progress-stop").addEventListener("click", () => this.stop());
    $("ask").addEventListener("submit", (event) => { event.preventDefault(); this.sized($("ask-mpp").value); });
    for (const button of document.querySelectorAll("[data-mpp]")) button.addEventListener("click", () => this.sized(button.dataset.mpp));
    $("mpp").addEventListener("input", () => { $("again").hidden = false; });
    $("mpp").addEventListener("keydown", (event) => { if (event.key === "Enter") $("again").click(); });
    $("again").addEventListener("click", () => this.resize());
    $("untyped-next").addEventListener("click", () => {
      const [one] = this.nuclei.untyped();
      this.editing.use("select");
      this.editing.select(one, true);
      this.viewer.osd.canvas.focus();
    });
    $("untyped-all").addEventListener("change", () => {
      for (const one of this.nuclei.untyped()) this.nuclei.label(one, Number($("untyped-all").value));
      this.changed();
    });
    $("search").addEventListener("input", () => this.showNames());
    addEventListener("beforeunload", (event) => { if (this.unsaved) event.preventDefault(); });
  }

  key(key) {
    if (key === "o") {
      const options = [...document.querySelectorAll("[name=outlines]")];
      options[(options.findIndex((one) => one.checked) + 1) % options.length].click();
    } else if (key === "m" && this.nuclei) $("map").click();
    else if (key === "h" && this.viewer.he) {
      const options = [...document.querySelectorAll("[name=base]")];
      options[(options.findIndex((one) => one.checked) + 1) % options.length].click();
    } else if (key === "?") $("help").showModal();
    else return false;
    return true;
  }

  // ---------------------------------------------------------------- opening

  async listFiles() {
    this.names = await get("api/files");
    $("folder").hidden = false;
    this.showNames();
  }

  showNames() {
    const wanted = $("search").value.toLowerCase();
    const found = this.names.filter((name) => name.toLowerCase().includes(wanted)).slice(0, 200);
    $("names").replaceChildren(...found.map((name) => {
      const [item, button] = [document.createElement("li"), document.createElement("button")];
      button.textContent = button.title = name;
      button.addEventListener("click", () => this.open({ name }));
      item.append(button);
      return item;
    }));
  }

  async request(how) {
    if (how.sample) return post("api/images/sample");
    if (how.name) return post("api/images/open", { file: how.name });
    if (how.file.size > this.facts.upload_mb * 2 ** 20)
      throw new Error(`${how.file.name}: ${(how.file.size / 2 ** 20).toFixed(0)} MB are more than the ${this.facts.upload_mb} MB that can be dropped. Start the program with path=FOLDER and open it from there.`);
    return upload(how.file);
  }

  async open(how) {
    if (!this.dropping()) return;
    const shown = this.image;
    this.busy(how.file ? `Sending ${how.file.name} …` : "Opening …");
    try {
      const image = await this.request(how);
      this.close();
      this.how = how;
      await this.show(image);
      this.busy(null);
      this.next();
    } catch (error) {
      this.busy(null);
      if (shown && this.image === shown) { this.fail(error); return; } // it stays open, with its corrections
      this.close();
      if (error instanceof Offline) this.fail(error);
      $("start-error").textContent = error.message;
      $("start-error").hidden = false;
    }
  }

  async show(image) {
    this.image = image;
    document.body.classList.remove("empty");
    $("start").hidden = true;
    for (const id of ["tools", "size", "open-another"]) $(id).hidden = false;
    $("name").textContent = $("name").title = image.name;
    document.title = `${image.name} · ihc2he`;
    $("mpp").value = image.mpp ? Number(image.mpp.toPrecision(4)) : "";
    await this.viewer.show(image);
  }

  // What comes after opening: the nuclei of a small image, the view to choose on a slide, or the pixel size.
  next() {
    if (!Number($("mpp").value)) { $("ask").hidden = false; $("ask-mpp").focus(); return; }
    if (this.isSlide) this.offerView();
    else this.analyse(null);
  }

  get isSlide() { return this.image.width * this.image.height > this.facts.region_px; }

  sized(value) {
    $("mpp").value = value;
    $("ask").hidden = true;
    $("again").hidden = true;
    this.next();
  }

  resize() {
    if (!$("mpp").reportValidity() || !Number($("mpp").value) || !this.keeping()) return;
    $("again").hidden = true;
    $("ask").hidden = true;
    if (this.nuclei) this.analyse(this.asked, true);
    else this.next();
  }

  offerView() {
    $("analyse-view").hidden = false;
    this.checkView();
  }

  // Says at once whether the view is small enough to be analysed.
  checkView() {
    if ($("analyse-view").hidden || !this.viewer.base) return;
    const mpp = Number($("mpp").value);
    const grid = Math.max(mpp, this.facts.mpp);
    const { width, height } = this.viewer.visible();
    const side = (Math.sqrt(this.facts.region_px) * grid) / 1000;
    const fits = width * height * (mpp / grid) ** 2 <= this.facts.region_px;
    $("analyse-go").disabled = !fits;
    $("analyse-text").textContent = !fits ? `Zoom in: at most ${side.toFixed(1)} × ${side.toFixed(1)} mm at a time`
      : this.nuclei ? "Another part of the slide?" : "Zoom to where you want to count";
  }

  close() {
    this.stop();
    this.forget();
    this.image = this.how = null;
    this.viewer.osd.close();
    this.viewer.base = null;
    document.body.classList.add("empty");
    for (const id of ["tools", "size", "open-another", "again", "ask", "analyse-view", "start-error"]) $(id).hidden = true;
    this.tell(null);
    $("start").hidden = false;
    $("name").textContent = "";
    document.title = "ihc2he";
  }

  forget() {
    this.nuclei = this.overlay.nuclei = this.overlay.selected = this.fieldId = null;
    this.viewer.translated(null);
    this.showBase("ihc");
    this.editing.use("select");
    this.panel.clear();
    this.overlay.later();
    this.enable();
  }

  // ---------------------------------------------------------------- analysing

  get unsaved() { return Boolean(this.nuclei?.edits.length) && !this.saved; }

  dropping() { return !this.unsaved || confirm("Drop your corrections of this image?"); }

  keeping() {
    return !this.unsaved || confirm("The nuclei are searched again. Drop your corrections?");
  }

  async analyse(region, sure = false) {
    if (!sure && !this.keeping()) return;
    $("analyse-view").hidden = true;
    this.tell(null);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const found = await this.find(region, turn);
      if (!found) return;
      this.asked = region;
      this.take(found.id, found.field);
    } catch (error) {
      if (turn !== this.turn) return;
      this.busy(null);
      if (this.nuclei) $("translator").value = this.nuclei.field.translator;
      if (this.isSlide) this.offerView();
      this.fail(error);
    }
  }

  // Returns the field of a region; null if something else was asked for meanwhile.
  async find(region, turn) {
    this.busy("Finding nuclei …", true);
    const asked = { mpp: Number($("mpp").value), translator: $("translator").value, region };
    const { job } = await post(`api/images/${this.image.id}/fields`, asked);
    this.job = job;
    const id = await result(job, (now) => {
      if (turn !== this.turn) return;
      const { before, done, total } = now;
      const text = now.state === "waiting" ? `Waiting for the network${before ? `, ${before} before` : ""} …` : total > 1 ? `Finding nuclei: ${done} of ${total} parts` : "Finding nuclei …";
      this.busy(text, true, total > 1 ? done / total : null);
    }, () => turn !== this.turn);
    if (turn !== this.turn || !id) return null;
    const field = await get(`api/fields/${id}`);
    if (turn !== this.turn) return null;
    this.busy(null);
    return { id, field };
  }

  take(id, field) {
    this.forget();
    this.fieldId = id;
    this.nuclei = this.overlay.nuclei = new Nuclei(field);
    this.viewer.translated(field.he ? id : null, field);
    if (field.he) this.showBase("both");
    const kinds = field.classes.slice(1).map((kind, i) => new Option(kind.name, i + 1));
    $("untyped-all").replaceChildren(new Option("Give all of them …", ""), ...kinds);
    this.changed();
    if (this.isSlide) this.offerView();
    this.say(`${this.nuclei.all.length} nuclei found`);
  }

  stop() {
    this.turn = (this.turn ?? 0) + 1;
    if (this.job) remove(`api/jobs/${this.job}`).catch(() => {}); // the server stops it by itself after a time
    this.job = null;
    this.busy(null);
    if (this.image && this.isSlide) this.offerView();
  }

  async translate() {
    if (!this.nuclei) return;
    if (!this.keeping()) { $("translator").value = this.nuclei.field.translator; return; }
    await this.analyse(this.asked, true);
  }

  // ---------------------------------------------------------------- showing

  recount() {
    this.overlay.bins = null;
    if (this.nuclei) this.panel.show(this.nuclei);
    else this.panel.clear();
    this.overlay.later();
    this.enable();
  }

  changed() {
    this.saved = false;
    const { added, removed, labelled } = this.nuclei.summary();
    const parts = [[added, "added"], [removed, "removed"], [labelled, "relabelled"]].filter(([n]) => n).map(([n, what]) => `${n} ${what}`);
    $("edits").textContent = parts.length ? `${parts.join(", ")}.` : "None yet. Click a nucleus, or add one.";
    this.recount();
    this.editing.showTypes();
  }

  enable() {
    const field = this.nuclei?.field;
    for (const button of document.querySelectorAll("[data-needs=field], [data-kind], #save")) button.disabled = !field;
    document.querySelector("[data-kind=he]").disabled = !field?.he;
    for (const input of document.querySelectorAll("[name=base]")) input.disabled = !field?.he && input.value !== "ihc";
    $("he-note").hidden = Boolean(field?.he);
    $("undo").disabled = !this.nuclei?.edits.length;
    const untyped = field && field.classes.length > 1 ? this.nuclei.untyped().length : 0;
    $("untyped").hidden = !untyped || !this.facts.save;
    $("untyped-text").textContent = `${untyped} ${untyped === 1 ? "nucleus has" : "nuclei have"} no type.`;
    $("untyped-all").value = "";
    if (!field) $("edits").textContent = "None yet. Click a nucleus, or add one.";
  }

  showMap() {
    this.overlay.map = $("map").checked;
    $("map-legend").hidden = !(this.overlay.map && this.nuclei);
    this.overlay.later();
  }

  showBase(mode) {
    document.querySelector(`[name=base][value=${mode}]`).checked = true;
    this.viewer.share = $("curtain").value / 1000;
    this.viewer.set(mode);
    for (const id of ["curtain", "curtain-line"]) $(id).hidden = mode !== "both";
    $("curtain-line").style.left = `${$("curtain").value / 10}%`;
  }

  busy(text, stoppable = false, share = null) {
    $("progress").hidden = !text;
    $("progress-stop").hidden = !stoppable;
    if (text && $("progress-text").textContent !== text) $("progress-text").textContent = text;
    if (share === null) $("progress-bar").removeAttribute("value");
    else $("progress-bar").value = share;
  }

  say(text) { $("say").textContent = text; }

  tell(text) {
    $("banner-text").textContent = text ?? "";
    $("banner").hidden = !text;
  }

  fail(error) {
    if (error instanceof Offline || error instanceof Gone) { this.recovery.recover(error); return; }
    this.tell(error.message);
  }
}

document.body.classList.add("empty");
const app = new App();
app.start().catch((error) => { $("start-error").textContent = error.message; $("start-error").hidden = false; });
window.ihc2he = app; // for tests and the curious
