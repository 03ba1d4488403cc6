// The nuclei of a field, what the user changes about them, and their numbers.

export class Nuclei {
  constructor(field) {
    this.field = field;
    this.all = [];
    this.byId = new Map();
    this.edits = [];
    this.take(field.nuclei);
    const areas = this.all.map((one) => one.box[2] - one.box[0]).sort((a, b) => a - b);
    this.diameter = areas.length ? areas[areas.length >> 1] : 7 / field.mpp;
    this.found = this.all.length;
    this.cell = this.diameter * 8;
    this.index = new Map();
    this.all.forEach((one) => this.place(one));
  }

  // Takes nuclei as the server sends them: rings of outlines one after the other.
  take(data) {
    const taken = [];
    const corners = Int32Array.from(data.corners);
    let ring = 0;
    for (let i = 0; i < data.id.length; i++) {
      const rings = [];
      let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
      for (; ring < data.of.length && data.of[ring] === i; ring++) {
        const line = corners.subarray(2 * data.rings[ring], 2 * data.rings[ring + 1]);
        rings.push(line);
        for (let k = 0; k < line.length; k += 2) {
          left = Math.min(left, line[k]); right = Math.max(right, line[k]);
          top = Math.min(top, line[k + 1]); bottom = Math.max(bottom, line[k + 1]);
        }
      }
      taken.push({
        id: data.id[i], x: data.x[i], y: data.y[i], type: data.type[i], dab: data.dab[i], score: data.score[i],
        area: data.area[i], rings, box: [left, top, right, bottom], gone: false, added: false,
      });
    }
    for (const one of taken) { this.all.push(one); this.byId.set(one.id, one); }
    return taken;
  }

  place(one) {
    const key = `${Math.floor(one.x / this.cell)},${Math.floor(one.y / this.cell)}`;
    if (!this.index.has(key)) this.index.set(key, []);
    this.index.get(key).push(one);
  }

  // The nuclei that are drawn in a rectangle.
  visible(left, top, right, bottom) {
    const [c0, c1, r0, r1] = [left, right, top, bottom].map((at) => Math.floor(at / this.cell));
    const found = [];
    const take = (some) => {
      for (const one of some)
        if (!one.gone && !one.hidden && one.box[2] >= left && one.box[0] <= right && one.box[3] >= top && one.box[1] <= bottom) found.push(one);
    };
    if ((c1 - c0 + 3) * (r1 - r0 + 3) > this.index.size) take(this.all);
    else
      for (let row = r0 - 1; row <= r1 + 1; row++)
        for (let column = c0 - 1; column <= c1 + 1; column++) take(this.index.get(`${column},${row}`) ?? []);
    return found;
  }

  at(x, y) {
    let best = null;
    for (const one of this.visible(x, y, x, y))
      if (inside(one.rings, x, y) && (!best || one.area < best.area)) best = one;
    return best;
  }

  closest(x, y) {
    let [best, least] = [null, Infinity];
    for (const one of this.all) {
      const away = (one.x - x) ** 2 + (one.y - y) ** 2;
      if (!one.gone && !one.hidden && away < least) [best, least] = [one, away];
    }
    return best;
  }

  // The nucleus that one meets when going on from a point in a direction.
  towards(from, [dx, dy]) {
    let [best, least] = [null, Infinity];
    for (const one of this.all) {
      if (one.gone || one.hidden || one === from) continue;
      const ahead = (one.x - from.x) * dx + (one.y - from.y) * dy;
      const aside = Math.abs((one.x - from.x) * dy) + Math.abs((one.y - from.y) * dx);
      const cost = ahead + 2 * aside;
      if (ahead > 0 && aside <= ahead && cost < least) [best, least] = [one, cost];
    }
    return best;
  }

  // ---------------------------------------------------------------- corrections

  remove(one) {
    this.edits.push({ do: "remove", id: one.id });
    one.gone = true;
  }

  label(one, type) {
    if (one.type === type) return;
    this.edits.push({ do: "type", id: one.id, type, before: one.type });
    one.type = type;
  }

  // Takes an added nucleus; `at` is how many corrections the server knew, as others may have come meanwhile.
  insert(edit, data, at) {
    const [one] = this.take(data);
    one.added = true;
    this.edits.splice(at, 0, { ...edit, id: one.id });
    this.place(one);
    return one;
  }

  undo() {
    const last = this.edits.pop();
    if (!last) return null;
    const one = this.byId.get(last.id);
    if (last.do === "remove") one.gone = false;
    else if (last.do === "type") one.type = last.before;
    else {
      this.all.splice(this.all.indexOf(one), 1);
      this.byId.delete(one.id);
      for (const cell of this.index.values()) if (cell.includes(one)) cell.splice(cell.indexOf(one), 1);
      one.gone = true;
    }
    return one;
  }

  // Whether a field has the nuclei that were corrected here, so that they have the same ids.
  isSame({ nuclei }) {
    const own = this.field.nuclei;
    return ["id", "x", "y"].every((name) => String(own[name]) === String(nuclei[name]));
  }

  // Applies corrections from before, where `added` are the nuclei that they add.
  replay(edits, added) {
    const made = new Map();
    for (const one of this.take(added)) { one.added = true; this.place(one); made.set(one.id, one); }
    for (const edit of edits) {
      const one = this.byId.get(edit.id);
      if (edit.do === "remove" && one) one.gone = true;
      if (edit.do === "type" && one) one.type = edit.type;
      this.edits.push(edit);
    }
  }

  // The highest id so far: the server counts on with each nucleus that is added.
  get known() { return this.found + this.summary().added; }

  get sent() { return plain(this.edits); }

  // The corrections without nuclei that were added and removed again; the ids of later ones move up, as the server counts.
  pruned() {
    const removed = new Set(this.edits.filter((edit) => edit.do === "remove").map((edit) => edit.id));
    const gone = this.edits.filter((edit) => edit.do === "add" && removed.has(edit.id)).map((edit) => edit.id);
    const moved = (id) => id - gone.filter((other) => other < id).length;
    return this.edits.filter((edit) => !gone.includes(edit.id)).map((edit) => ({ ...edit, id: moved(edit.id) }));
  }

  summary() {
    const count = (what) => this.edits.filter((edit) => edit.do === what).length;
    return { added: count("add"), removed: count("remove"), labelled: count("type") };
  }

  // ---------------------------------------------------------------- numbers

  // Counts by type and strength; hides what is below the least score.
  count(thresholds, least) {
    const kinds = this.field.classes.length;
    const cells = Array.from({ length: kinds }, () => [0, 0, 0, 0]);
    for (const one of this.all) {
      one.hidden = one.score < least;
      one.strength = one.dab >= thresholds[2] ? 3 : one.dab >= thresholds[1] ? 2 : one.dab >= thresholds[0] ? 1 : 0;
      if (!one.gone && !one.hidden) cells[one.type][one.strength]++;
    }
    return cells;
  }

  untyped() {
    return this.all.filter((one) => !one.gone && !one.hidden && one.type === 0);
  }
}

// Corrections as the server reads them.
export const plain = (edits) => edits.map(({ do: what, id, type, x, y }) =>
  what === "add" ? { do: what, type, x, y } : what === "remove" ? { do: what, id } : { do: what, id, type });

export function summed(cells) {
  const four = cells.reduce((sum, own) => sum.map((value, i) => value + own[i]), [0, 0, 0, 0]);
  return numbers(four);
}

export function numbers([negative, weak, moderate, strong]) {
  const n = negative + weak + moderate + strong;
  return {
    four: [negative, weak, moderate, strong], n,
    percent: n ? (100 * (n - negative)) / n : null,
    hscore: n ? (100 * (weak + 2 * moderate + 3 * strong)) / n : null,
  };
}

function inside(rings, x, y) {
  let odd = false;
  for (const ring of rings)
    for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) {
      const [x0, y0, x1, y1] = [ring[i], ring[i + 1], ring[j], ring[j + 1]];
      if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) odd = !odd;
    }
  return odd;
}
