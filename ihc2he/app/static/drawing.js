// Outlines and the positivity map on a canvas over the image; only what is in view is drawn.

export const STRENGTHS = ["#4f7fbf", "#e6b23a", "#d9752b", "#8f3420"];
const SMALL = 4; // px on the screen; smaller nuclei are dots
const ROUND = 14; // larger ones get smooth outlines
const FEW = 1200; // up to so many are drawn as curves with a light rim; more as pixels, which takes a hundredth of the time
const BIN_UM = 50;

export class Overlay {
  // `view` gives where px (0, 0) of the image is on the screen, and px of the screen per px of the image.
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this.nuclei = null;
    this.outlines = "class";
    this.map = false;
    this.selected = null;
    this.queued = false;
    this.bins = null;
    this.pixels = new Pixels();
  }

  later() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.draw(); });
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const view = this.view();
    if (!view || !this.nuclei) return;
    if (this.map) this.drawMap(context, view);
    this.drawField(context, view);
    if (this.outlines !== "off") this.drawNuclei(context, view, width, height);
    if (this.selected && !this.selected.gone) this.drawSelected(context, view);
  }

  colour(one) {
    return this.outlines === "stain" ? STRENGTHS[one.strength ?? 0] : this.nuclei.field.classes[one.type].colour;
  }

  drawNuclei(context, view, width, height) {
    const { left, top, scale } = view;
    const shown = this.nuclei.visible(-left / scale, -top / scale, (width - left) / scale, (height - top) / scale);
    const size = this.nuclei.diameter * scale;
    if (shown.length > FEW || size < SMALL) { this.drawPixels(context, view, shown, size); return; }
    const groups = new Map();
    for (const one of shown) {
      const colour = this.colour(one);
      if (!groups.has(colour)) groups.set(colour, new Path2D());
      this.trace(groups.get(colour), one, view, size);
    }
    context.lineJoin = "round";
    for (const [colour, path] of groups) {
      if (size > ROUND) { context.strokeStyle = "#ffffffa0"; context.lineWidth = size > 40 ? 4.4 : 3.4; context.stroke(path); }
      context.strokeStyle = colour;
      context.lineWidth = size > 40 ? 2.4 : 1.7;
      context.stroke(path);
    }
  }

  // Dots, or outlines without smoothing, written into a picture.
  drawPixels(context, { left, top, scale }, shown, size) {
    const ratio = window.devicePixelRatio || 1;
    const pixels = this.pixels.of(this.canvas.width, this.canvas.height);
    const [x0, y0, factor] = [left * ratio, top * ratio, scale * ratio];
    for (const one of shown) {
      pixels.colour(this.colour(one));
      if (size < SMALL) { pixels.dot(one.x * factor + x0, one.y * factor + y0, Math.max(1, Math.round(size * ratio * 0.8))); continue; }
      const thick = Math.max(1, Math.round((size < 2 * SMALL ? 1 : 1.5) * ratio));
      for (const ring of one.rings) {
        const points = ring.length / 2;
        const step = Math.max(1, Math.floor(points / Math.max(8, size)));
        let [x, y] = [ring[0] * factor + x0, ring[1] * factor + y0];
        for (let i = step; i < points + step; i += step) {
          const at = i < points ? 2 * i : 0;
          const [to, down] = [ring[at] * factor + x0, ring[at + 1] * factor + y0];
          pixels.line(x, y, to, down, thick);
          [x, y] = [to, down];
        }
      }
    }
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(pixels.picture(), 0, 0);
    context.restore();
  }

  trace(path, one, { left, top, scale }, size) {
    for (const ring of one.rings) {
      const points = ring.length / 2;
      if (size < ROUND) { // every corner would be finer than the screen
        const step = Math.max(1, Math.floor(points / Math.max(8, size * 1.6)));
        for (let i = 0; i < points; i += step)
          path[i ? "lineTo" : "moveTo"](ring[2 * i] * scale + left, ring[2 * i + 1] * scale + top);
      } else { // through the middles of the sides, so that stairs of pixels become slopes
        for (let i = 0; i <= points; i++) {
          const [a, b] = [2 * (i % points), 2 * ((i + 1) % points)];
          const [x, y] = [((ring[a] + ring[b]) / 2) * scale + left, ((ring[a + 1] + ring[b + 1]) / 2) * scale + top];
          if (i) path.quadraticCurveTo(ring[a] * scale + left, ring[a + 1] * scale + top, x, y);
          else path.moveTo(x, y);
        }
      }
      path.closePath();
    }
  }

  drawSelected(context, view) {
    const path = new Path2D();
    this.trace(path, this.selected, view, ROUND);
    context.fillStyle = "#ffffff3a";
    context.fill(path, "evenodd");
    for (const [width, colour] of [[7, "#111"], [4.5, "#fff"], [2, this.colour(this.selected)]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }

  drawField(context, { left, top, scale }) {
    const { region } = this.nuclei.field;
    context.strokeStyle = "#0007";
    context.lineWidth = 1;
    context.setLineDash([6, 4]);
    context.strokeRect(region.left * scale + left, region.top * scale + top, region.width * scale, region.height * scale);
    context.setLineDash([]);
  }

  // ---------------------------------------------------------------- positivity map

  drawMap(context, { left, top, scale }) {
    this.bins ??= this.binned();
    const { picture, region } = this.bins;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.globalAlpha = 0.62;
    context.drawImage(picture, region.left * scale + left, region.top * scale + top, region.width * scale, region.height * scale);
    context.globalAlpha = 1;
  }

  // Percent positive in squares of 50 um, smoothed over neighbours; finer on small fields.
  binned() {
    const { region, mpp, area_mm2: area } = this.nuclei.field;
    const scale = Math.sqrt((area * 1e6) / (region.width * region.height)) || mpp; // um per px of the image
    const side = Math.min(BIN_UM, Math.max(region.width, region.height) * scale / 8) / scale;
    const [columns, rows] = [region.width, region.height].map((length) => Math.max(1, Math.ceil(length / side)));
    const [all, positive] = [new Float32Array(columns * rows), new Float32Array(columns * rows)];
    for (const one of this.nuclei.all) {
      if (one.gone || one.hidden) continue;
      const column = Math.min(columns - 1, Math.floor((one.x - region.left) / side));
      const row = Math.min(rows - 1, Math.floor((one.y - region.top) / side));
      all[row * columns + column]++;
      if (one.strength) positive[row * columns + column]++;
    }
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [columns, rows];
    const pixels = picture.getContext("2d").createImageData(columns, rows);
    const [whole, part] = [blurred(all, columns, rows), blurred(positive, columns, rows)];
    for (let i = 0; i < all.length; i++) {
      const [red, green, blue] = ramp(whole[i] ? part[i] / whole[i] : 0);
      pixels.data.set([red, green, blue, whole[i] ? Math.min(255, 90 + 400 * whole[i]) : 0], 4 * i);
    }
    picture.getContext("2d").putImageData(pixels, 0, 0);
    return { picture, region };
  }
}

// A picture that is written pixel by pixel.
class Pixels {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.colours = new Map();
  }

  of(width, height) {
    if (!this.image || this.canvas.width !== width || this.canvas.height !== height) {
      [this.canvas.width, this.canvas.height] = [width, height];
      this.image = new ImageData(width, height);
      this.values = new Uint32Array(this.image.data.buffer);
    }
    [this.width, this.height] = [width, height];
    this.values.fill(0);
    return this;
  }

  colour(text) {
    if (!this.colours.has(text)) {
      const bytes = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
      this.colours.set(text, new Uint32Array(new Uint8ClampedArray([...bytes, 255]).buffer)[0]);
    }
    this.value = this.colours.get(text);
  }

  dot(x, y, side) {
    const [left, top] = [Math.round(x - side / 2), Math.round(y - side / 2)];
    for (let row = Math.max(0, top); row < Math.min(this.height, top + side); row++)
      for (let column = Math.max(0, left); column < Math.min(this.width, left + side); column++)
        this.values[row * this.width + column] = this.value;
  }

  line(x0, y0, x1, y1, thick) {
    const steps = Math.max(1, Math.ceil(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0))));
    const [dx, dy] = [(x1 - x0) / steps, (y1 - y0) / steps];
    for (let i = 0; i < steps; i++) {
      const [x, y] = [(x0 + i * dx) | 0, (y0 + i * dy) | 0];
      if (thick > 1) this.dot(x + 0.5, y + 0.5, thick);
      else if (x >= 0 && y >= 0 && x < this.width && y < this.height) this.values[y * this.width + x] = this.value;
    }
  }

  picture() {
    this.canvas.getContext("2d").putImageData(this.image, 0, 0);
    return this.canvas;
  }
}

function blurred(values, columns, rows) {
  const made = new Float32Array(values.length);
  const weight = [0.242, 0.399, 0.242];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      for (let dy = -1; dy <= 1; dy++)
        for (let dx = -1; dx <= 1; dx++) {
          const [y, x] = [row + dy, column + dx];
          if (y >= 0 && y < rows && x >= 0 && x < columns)
            made[row * columns + column] += values[y * columns + x] * weight[dy + 1] * weight[dx + 1];
        }
  return made;
}

function ramp(share) {
  const [low, middle, high] = [[59, 111, 181], [245, 236, 200], [181, 53, 43]];
  const [from, to, t] = share < 0.5 ? [low, middle, 2 * share] : [middle, high, 2 * share - 1];
  return from.map((value, i) => Math.round(value + t * (to[i] - value)));
}
