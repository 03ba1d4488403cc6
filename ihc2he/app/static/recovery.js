// Going on after the server was away, or has forgotten what this page has open.

import { Offline, get, post, wait } from "./api.js";
import { plain } from "./nuclei.js";

const $ = (id) => document.getElementById(id);
const HEARTBEAT_MS = 10000;

export class Recovery {
  // `app` has facts, image, how, nuclei, asked, turn, request(), show(), next(), find(), take(), changed(), busy(), tell().
  constructor(app) {
    this.app = app;
    this.running = null;
  }

  async heartbeat() {
    for (;;) {
      await wait(HEARTBEAT_MS);
      try {
        const now = await get("api/start");
        if (now.run !== this.app.facts.run) await this.recover(null);
      } catch (error) { if (error instanceof Offline) await this.recover(error); }
    }
  }

  // Waits for the server, opens the image again, and applies the corrections again.
  recover(error) {
    this.running ??= this.recovered(error).finally(() => { this.running = null; });
    return this.running;
  }

  async recovered(error) {
    const { app } = this;
    const { how, nuclei, asked } = app;
    const edits = nuclei ? nuclei.pruned() : [];
    const turn = (app.turn = (app.turn ?? 0) + 1);
    app.busy(null);
    if (error instanceof Offline) {
      app.tell("The server does not answer. Start it again; this page goes on by itself and keeps your corrections.");
    }
    for (;;) {
      try { app.facts = await get("api/start"); break; } catch (problem) {
        if (!(problem instanceof Offline)) app.tell(problem.message);
        await wait(1500);
      }
    }
    app.tell(null);
    app.saving.start(app.facts);
    if (!how) return;
    try {
      const image = await app.request(how);
      const mpp = $("mpp").value;
      await app.show(image);
      $("mpp").value = mpp;
      if (!nuclei) { app.next(); return; }
      const found = await app.find(asked, turn);
      if (!found) return;
      if (edits.length && !nuclei.isSame(found.field))
        throw new Error("The server now finds other nuclei than those that you corrected: it runs with other weights or settings. Start it with the former ones to go on, or press Open… to drop your corrections.");
      const added = edits.some((edit) => edit.do === "add") ? await post(`api/fields/${found.id}/edits`, { edits: plain(edits) }) : null;
      app.take(found.id, found.field);
      app.nuclei.replay(edits, added ?? { id: [], corners: [], rings: [0], of: [] });
      app.changed();
      app.tell(`The server was started again: the image is open again${edits.length ? `, with your ${edits.length} ${edits.length === 1 ? "correction" : "corrections"}` : ""}.`);
    } catch (problem) {
      app.busy(null);
      app.tell(problem.message);
    }
  }
}
