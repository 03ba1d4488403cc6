// Deep zoom of an image and of its virtual H&E, with OpenSeadragon.
/* global OpenSeadragon */

const source = (what, image, size) => ({
  width: size.width, height: size.height, tileSize: image.tile, tileOverlap: image.overlap,
  minLevel: 0, maxLevel: Math.ceil(Math.log2(Math.max(size.width, size.height))),
  getTileUrl(level, column, row) { return `api/${what}/${image.id}/tiles/${level}/${column}_${row}.jpg`; },
});

export class Viewer {
  constructor(element, changed) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.osd = OpenSeadragon({
      element, drawer: "canvas", showNavigationControl: false, keyboardNavEnabled: false,
      animationTime: still ? 0 : 0.45, springStiffness: 9, blendTime: 0.1, maxZoomPixelRatio: 10, minZoomImageRatio: 0.7,
      visibilityRatio: 0.3, zoomPerScroll: 1.3, zoomPerClick: 1, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false, flickEnabled: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false }, showNavigator: true, navigatorPosition: "BOTTOM_LEFT", navigatorSizeRatio: 0.14,
      navigatorAutoFade: true, imageLoaderLimit: 6,
    });
    this.image = null;
    this.base = null;
    this.he = null;
    this.share = 0.5;
    this.mode = "ihc";
    for (const event of ["update-viewport", "resize", "animation"]) this.osd.addHandler(event, () => { this.clip(); changed(); });
    const canvas = this.osd.canvas;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Image with nuclei: arrow keys go from nucleus to nucleus, A adds, R removes, 1 to 4 set the type");
  }

  show(image) {
    this.image = image;
    this.base = this.he = null;
    this.osd.navigator.element.style.display = Math.max(image.width, image.height) > 4096 ? "" : "none";
    return new Promise((done, failed) => {
      this.osd.close();
      this.osd.addOnceHandler("open", async () => {
        this.base = this.osd.world.getItemAt(0);
        this.osd.forceResize(); // the numbers have appeared beside it; done in the next frames
        for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
        this.osd.viewport.goHome(true);
        done();
      });
      this.osd.addOnceHandler("open-failed", (event) => failed(new Error(event.message)));
      this.osd.open(source("images", image, image));
    });
  }

  // Lays the virtual H&E of a field over the image; null takes it away.
  translated(id, field) {
    if (this.he) this.osd.world.removeItem(this.he);
    this.he = null;
    if (!id) return;
    const { region } = field;
    const whole = this.image.width;
    const size = { width: field.size[0], height: field.size[1] };
    this.osd.addTiledImage({
      tileSource: source("fields", { ...this.image, id }, size),
      x: region.left / whole, y: region.top / whole, width: region.width / whole,
      success: ({ item }) => { this.he = item; this.set(this.mode); },
    });
  }

  set(mode) {
    this.mode = mode;
    if (!this.he) return;
    this.he.setOpacity(mode === "ihc" ? 0 : 1);
    if (mode === "both") this.clip();
    else this.he.setClip(null);
  }

  clip() {
    if (!this.he || this.mode !== "both") return;
    const at = this.he.viewerElementToImageCoordinates(new OpenSeadragon.Point(this.share * this.osd.element.clientWidth, 0));
    const size = this.he.getContentSize();
    const left = Math.min(Math.max(0, at.x), size.x - 1);
    this.he.setClip(new OpenSeadragon.Rect(left, 0, size.x - left, size.y));
    this.he.setOpacity(at.x >= size.x ? 0 : 1);
  }

  view() {
    if (!this.base) return null;
    const point = (x, y) => this.base.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
    const [start, end] = [point(0, 0), point(this.image.width, 0)];
    return { left: start.x, top: start.y, scale: (end.x - start.x) / this.image.width };
  }

  toImage(x, y) {
    const { left, top, scale } = this.view();
    return [(x - left) / scale, (y - top) / scale];
  }

  // The part of the image that is on the screen, in its px.
  visible() {
    const { clientWidth, clientHeight } = this.osd.element;
    const [left, top] = this.toImage(0, 0);
    const [right, bottom] = this.toImage(clientWidth, clientHeight);
    return bounded(this.image, left, top, right, bottom);
  }

  zoom(factor) { this.osd.viewport.zoomBy(factor); this.osd.viewport.applyConstraints(); }
  home() { this.osd.viewport.goHome(); }
  pan(dx, dy) {
    const { clientWidth } = this.osd.element;
    const delta = this.osd.viewport.deltaPointsFromPixels(new OpenSeadragon.Point((dx * clientWidth) / 6, (dy * clientWidth) / 6));
    this.osd.viewport.panBy(delta);
    this.osd.viewport.applyConstraints();
  }

  reveal(x, y) {
    const { left, top, scale } = this.view();
    const [at, down] = [x * scale + left, y * scale + top];
    const { clientWidth, clientHeight } = this.osd.element;
    const margin = 70;
    if (at > margin && down > margin && at < clientWidth - margin && down < clientHeight - margin) return;
    this.osd.viewport.panTo(this.base.imageToViewportCoordinates(new OpenSeadragon.Point(x, y)));
  }
}

export function bounded(image, left, top, right, bottom) {
  const [x0, x1] = [left, right].map((at) => Math.round(Math.min(Math.max(at, 0), image.width)));
  const [y0, y1] = [top, bottom].map((at) => Math.round(Math.min(Math.max(at, 0), image.height)));
  return { left: x0, top: y0, width: x1 - x0, height: y1 - y0 };
}
