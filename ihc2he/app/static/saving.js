// Downloads, corrections as training tiles, and fine-tuning on them.

import { file, get, post, remove, result, wait } from "./api.js";

const $ = (id) => document.getElementById(id);
const ENDINGS = { csv: "nuclei.csv", geojson: "nuclei.geojson", png: "overlay.png", he: "he.png" };

export class Saving {
  constructor(app) {
    this.app = app;
    for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => this.download(button));
    $("save").addEventListener("click", () => this.save());
    $("tune").addEventListener("click", () => this.tune());
    $("tuning-stop").addEventListener("click", () => remove("api/tuning").catch((error) => app.fail(error)));
    $("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText($("command").textContent);
        $("copy").textContent = "Copied";
      } catch { getSelection().selectAllChildren($("command")); }
    });
  }

  start(facts) {
    $("saving").hidden = !facts.save;
    $("no-saving").hidden = Boolean(facts.save);
    $("tune").hidden = !facts.trainable;
    if (facts.tuning?.state === "running") { $("saved").hidden = false; this.follow().catch((error) => this.app.fail(error)); }
  }

  get sent() {
    const { nuclei, panel } = this.app;
    return { edits: nuclei.sent, thresholds: panel.thresholds, least_score: panel.least };
  }

  async download(button) {
    const { kind } = button.dataset;
    button.disabled = true;
    try {
      const made = await file(`api/fields/${this.app.fieldId}/files/${kind}`, this.sent);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(made);
      link.download = `${this.app.image.name.replace(/\.[^.]+$/, "")}_${ENDINGS[kind]}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    } catch (error) { this.app.fail(error); }
    button.disabled = false;
    this.app.enable();
  }

  async save() {
    $("save").disabled = true;
    const { nuclei } = this.app;
    const edits = JSON.stringify(nuclei.sent);
    try {
      const done = await post(`api/fields/${this.app.fieldId}/corrections`, this.sent);
      $("saved").hidden = false;
      $("saved-text").textContent = `Saved as ${done.name}. ${done.saved} ${done.saved === 1 ? "tile" : "tiles"} in ${done.folder}.`;
      $("command").textContent = done.command;
      $("copy").textContent = "Copy";
      if (nuclei === this.app.nuclei) this.app.saved = JSON.stringify(nuclei.sent) === edits; // there may be more by now
      this.app.say("Saved");
    } catch (error) { this.app.fail(error); }
    $("save").disabled = false;
  }

  async tune() {
    $("tune").disabled = true;
    $("compared").hidden = true;
    try {
      await post("api/tuning");
      await this.follow();
    } catch (error) {
      this.app.fail(error);
      $("tune").disabled = false;
    }
  }

  async follow() {
    $("tune").disabled = true;
    const bar = $("tuning-bar");
    for (const id of ["tuning", "tuning-bar", "tuning-stop"]) $(id).hidden = false;
    bar.removeAttribute("value");
    $("tuning-text").textContent = "Starting …";
    try {
      for (;;) {
        const now = await get("api/tuning");
        if (now.total) { bar.value = now.done / now.total; $("tuning-text").textContent = `Epoch ${now.done} of ${now.total}: ${now.said}`; }
        if (now.state === "failed") {
          $("tuning-text").textContent = "It ended early.";
          throw new Error(`The fine-tuning ended early.\n${now.error}`);
        }
        if (now.state === "done") { await this.compare(now); break; }
        await wait(1000);
      }
    } finally {
      $("tune").disabled = false;
      for (const id of ["tuning-bar", "tuning-stop"]) $(id).hidden = true;
    }
  }

  async compare(now) {
    $("tuning-bar").removeAttribute("value");
    $("tuning-stop").hidden = true;
    $("tuning-text").textContent = "Comparing before and after …";
    const { job } = await post("api/tuning/comparison");
    const found = await result(job, () => {}, () => false);
    const rows = [["corrected by hand", found.corrected, null], ["before", found.before.nuclei, found.before.f1], ["after", found.after.nuclei, found.after.f1]];
    $("compared").tBodies[0].replaceChildren(...rows.map(([name, n, f1]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head);
      for (const text of [n, f1 === null ? "" : f1.toFixed(3)]) { const cell = document.createElement("td"); cell.textContent = text; row.append(cell); }
      return row;
    }));
    $("compared").hidden = false;
    $("tuning-text").textContent = `Done. To use the new weights: weights=${now.weights}`;
  }
}
