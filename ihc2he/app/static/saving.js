// Downloads, corrections as training tiles, and fine-tuning on them.

import { file, get, post, remove, result, wait } from "./api.js";

const $ = (id) => document.getElementById(id);
const ENDINGS = { csv: "nuclei.csv", geojson: "nuclei.geojson", png: "overlay.png", he: "he.png" };

const FEW = "Nuclei that you left alone are what the former weights find, so with few corrections these begin near 1.";

async function copy(button) {
  const text = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch { getSelection().selectAllChildren(text); }
}

export class Saving {
  constructor(app) {
    this.app = app;
    for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => this.download(button));
    $("save").addEventListener("click", () => this.save());
    $("tune").addEventListener("click", () => this.tune());
    $("tuning-stop").addEventListener("click", () => remove("api/tuning").catch((error) => app.fail(error)));
    for (const button of document.querySelectorAll(".command button")) button.addEventListener("click", () => copy(button));
  }

  start(facts) {
    $("saving").hidden = !facts.save;
    $("no-saving").hidden = Boolean(facts.save);
    $("tune").hidden = !facts.trainable;
    if (facts.saved) this.offer(facts.saved, facts.save, facts.command);
    const going = { running: () => this.follow(), done: () => this.compare(facts.tuning) }[facts.tuning?.state];
    if (going) { $("saved").hidden = false; going().catch((error) => this.app.fail(error)); }
    else if (!$("tuning").hidden) $("tuning-text").textContent = "The fine-tuning ended with the server. It can be started again.";
  }

  offer(saved, folder, command, name = null) {
    $("saved").hidden = false;
    $("saved-text").textContent = `${name ? `Saved as ${name}. ` : ""}${saved} ${saved === 1 ? "tile" : "tiles"} in ${folder}.`;
    $("command").textContent = command;
    $("copy").textContent = "Copy";
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
      this.offer(done.saved, done.folder, done.command, done.name);
      if (nuclei === this.app.nuclei) this.app.saved = JSON.stringify(nuclei.sent) === edits; // there may be more by now
      this.app.say("Saved");
    } catch (error) { this.app.fail(error); }
    $("save").disabled = false;
  }

  async tune() {
    $("tune").disabled = true;
    $("compared").hidden = $("used").hidden = true;
    try {
      await post("api/tuning");
      await this.follow();
    } catch (error) {
      this.app.fail(error);
      $("tune").disabled = false;
    }
  }

  async follow() {
    if (this.following) return;
    this.following = true;
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
      this.following = false;
      $("tune").disabled = false;
      for (const id of ["tuning-bar", "tuning-stop"]) $(id).hidden = true;
    }
  }

  async compare(now) {
    $("tuning").hidden = false;
    $("tuning-bar").removeAttribute("value");
    $("tuning-stop").hidden = true;
    $("tuning-text").textContent = "Comparing before and after …";
    const found = now.comparison ?? await result((await post("api/tuning/comparison")).job, () => {}, () => false);
    $("tuning-bar").hidden = true;
    const rows = [["corrections", found.corrected, "", ""]];
    for (const name of ["before", "after"]) {
      const { nuclei, f1, types } = found[name];
      rows.push([name, nuclei, f1.toFixed(3), types === null ? "" : `${(100 * types).toFixed(1)} %`]);
    }
    $("compared").tBodies[0].replaceChildren(...rows.map(([name, ...texts]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head);
      for (const text of texts) { const cell = document.createElement("td"); cell.textContent = text; row.append(cell); }
      return row;
    }));
    $("compared").hidden = false;
    const worse = found.after.f1 < found.before.f1 || found.after.types < found.before.types;
    $("tuning-text").textContent = worse ? "Done, but the new weights fit the corrections less well. " + FEW : "Done.";
    [$("use-train").textContent, $("use-page").textContent] = now.uses;
    $("used").hidden = false;
  }
}
