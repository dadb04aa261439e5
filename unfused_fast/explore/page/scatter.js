// A map of points, drawn into an image by the processor: the same picture with and without a GPU.
// points: Float32Array of x, y; state of each point: 0 hidden behind a filter (drawn faint), 1 shown.

const SHAPES = 3; // disc, diamond, ring: times 8 colours
const NEAR = 12; // CSS pixels within which a pointer finds a point

export class Scatter {
  constructor(points, canvas, marks, events) {
    Object.assign(this, { points, canvas, marks, events, count: points.length / 2 });
    this.shown = new Uint8Array(this.count).fill(1);
    this.codes = new Uint8Array(this.count); // index into palette
    this.palette = [[0, 0, 0]];
    this.shapes = [0];
    this.ground = [255, 255, 255];
    this.faint = [200, 200, 200];
    this.tool = "pan";
    this.selected = this.hovered = -1;
    this.outline = [];
    this.emphasis = -1; // a code: all others are drawn faint
    this.chosen = null; // a Set: likewise
    this.inset = 0; // CSS pixels on the left that something covers
    this.view = { x: 0, y: 0, scale: 1 };
    this.touched = false;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.listen();
    this.resize();
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    this.width = Math.max(1, Math.round(box.width));
    this.height = Math.max(1, Math.round(box.height));
    for (const canvas of [this.canvas, this.marks]) {
      canvas.width = this.width * this.ratio;
      canvas.height = this.height * this.ratio;
    }
    this.image = null;
    if (this.touched) this.draw();
    else this.fit();
  }

  fit() {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < this.count; i++) {
      const [x, y] = [this.points[2 * i], this.points[2 * i + 1]];
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < low) low = y;
      if (y > high) high = y;
    }
    const margin = Math.min(this.width, this.height) < 500 ? 28 : 56;
    const scale = Math.min((this.width - this.inset - 2 * margin) / (right - left || 1), (this.height - 2 * margin) / (high - low || 1));
    this.view = { x: (left + right) / 2 - this.inset / 2 / scale, y: (low + high) / 2, scale };
    this.whole = scale;
    this.touched = false;
    this.draw();
  }

  place(i) {
    const { x, y, scale } = this.view;
    return [this.width / 2 + (this.points[2 * i] - x) * scale, this.height / 2 - (this.points[2 * i + 1] - y) * scale];
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const view = this.view;
    const scale = Math.max(this.whole * 0.5, Math.min(this.whole * 200, view.scale * factor));
    const [dx, dy] = [(px - this.width / 2) * (1 / view.scale - 1 / scale), (py - this.height / 2) * (1 / view.scale - 1 / scale)];
    this.view = { x: view.x + dx, y: view.y - dy, scale };
    this.touched = true;
    this.draw();
  }

  pan(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
    this.touched = true;
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
      this.mark();
    });
  }

  radius() {
    const crowd = Math.min(1, Math.sqrt(3000 / this.count));
    const closer = Math.pow(Math.max(1, this.view.scale / this.whole), 0.35);
    return Math.max(1.3, Math.min(9, (1.6 + 2.9 * crowd) * closer)) * this.ratio;
  }

  paint() {
    const context = this.canvas.getContext("2d", { willReadFrequently: true }); // its memory, since pixels are written
    const [width, height] = [this.canvas.width, this.canvas.height];
    this.image ??= context.createImageData(width, height);
    const data = this.image.data;
    const ground = new Uint32Array(data.buffer);
    ground.fill(new Uint32Array(new Uint8Array([...this.ground, 255]).buffer)[0]);
    const r = this.radius();
    const masks = Array.from({ length: SHAPES }, (_, shape) => maskOf(shape, r, width));
    const reach = Math.ceil(r) + 1;
    const { x, y, scale } = this.view;
    const [cx, cy, step] = [width / 2, height / 2, scale * this.ratio];
    for (const front of [0, 1]) {
      for (let i = 0; i < this.count; i++) {
        const code = this.codes[i];
        const bright = this.shown[i] && (this.emphasis < 0 || this.emphasis === code) && (!this.chosen || this.chosen.has(i)) ? 1 : 0;
        if (bright !== front) continue;
        const px = Math.round(cx + (this.points[2 * i] - x) * step);
        const py = Math.round(cy - (this.points[2 * i + 1] - y) * step);
        if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
        const [red, green, blue] = bright ? this.palette[code] : this.faint;
        const strength = bright ? 1 : 0.45;
        const { offsets, alphas } = masks[bright ? this.shapes[code] : 0];
        const start = 4 * (py * width + px);
        for (let m = 0; m < offsets.length; m++) {
          const at = start + offsets[m];
          const alpha = alphas[m] * strength;
          data[at] += (red - data[at]) * alpha;
          data[at + 1] += (green - data[at + 1]) * alpha;
          data[at + 2] += (blue - data[at + 2]) * alpha;
        }
      }
    }
    context.putImageData(this.image, 0, 0);
  }

  // Rings around the hovered and the selected point, and the outline of what is being selected.
  mark() {
    const context = this.marks.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const style = getComputedStyle(this.marks);
    const r = this.radius() / this.ratio;
    for (const i of this.linked ?? []) {
      const [from, to] = [this.place(this.selected), this.place(i)];
      context.strokeStyle = style.getPropertyValue("--link");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
    }
    for (const [i, width] of [[this.hovered, 1.5], [this.selected, 2.5]]) {
      if (i < 0) continue;
      const [px, py] = this.place(i);
      context.fillStyle = `rgb(${this.palette[this.codes[i]].join(" ")})`;
      context.beginPath();
      context.arc(px, py, r + 1, 0, 2 * Math.PI);
      context.fill();
      for (const [line, colour] of [[width + 2, "--ground"], [width, "--ink"]]) {
        context.strokeStyle = style.getPropertyValue(colour);
        context.lineWidth = line;
        context.beginPath();
        context.arc(px, py, r + 3.5, 0, 2 * Math.PI);
        context.stroke();
      }
    }
    if (this.outline.length > 1) {
      context.strokeStyle = style.getPropertyValue("--accent");
      context.fillStyle = style.getPropertyValue("--accent-soft");
      context.lineWidth = 1.5;
      context.setLineDash([5, 4]);
      context.beginPath();
      this.corners().forEach(([px, py], n) => (n ? context.lineTo(px, py) : context.moveTo(px, py)));
      context.closePath();
      context.fill();
      context.stroke();
      context.setLineDash([]);
    }
  }

  corners() {
    if (this.tool !== "box") return this.outline;
    const [[ax, ay], [bx, by]] = [this.outline[0], this.outline.at(-1)];
    return [[ax, ay], [bx, ay], [bx, by], [ax, by]];
  }

  at(px, py, reach = NEAR) {
    let [best, found] = [reach * reach, -1];
    for (let i = 0; i < this.count; i++) {
      if (!this.shown[i]) continue;
      const [x, y] = this.place(i);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < best) [best, found] = [distance, i];
    }
    return found;
  }

  // The nearest shown point within 45 degrees of a direction; from nothing the one in the middle.
  next(dx, dy) {
    if (this.selected < 0) return this.at(this.width / 2, this.height / 2, Infinity);
    const [fx, fy] = this.place(this.selected);
    let [best, found] = [Infinity, -1];
    for (let i = 0; i < this.count; i++) {
      if (!this.shown[i] || i === this.selected) continue;
      const [x, y] = this.place(i);
      const [ahead, aside] = [(x - fx) * dx + (y - fy) * dy, Math.abs((x - fx) * dy - (y - fy) * dx)];
      if (ahead <= 0 || aside > ahead) continue;
      const cost = ahead + 2 * aside;
      if (cost < best) [best, found] = [cost, i];
    }
    return found;
  }

  reveal(i) {
    const [x, y] = this.place(i);
    if (x < 20 || y < 20 || x > this.width - 20 || y > this.height - 20) {
      [this.view.x, this.view.y] = [this.points[2 * i], this.points[2 * i + 1]];
      this.touched = true;
    }
    this.draw();
  }

  enclosed() {
    const corners = this.corners();
    const inside = [];
    for (let i = 0; i < this.count; i++) {
      if (!this.shown[i]) continue;
      const [x, y] = this.place(i);
      let odd = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
        const [[ax, ay], [bx, by]] = [corners[a], corners[b]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      if (odd) inside.push(i);
    }
    return inside;
  }

  listen() {
    const surface = this.marks;
    const where = (event) => {
      const box = surface.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    surface.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...where(event));
    }, { passive: false });
    surface.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      surface.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, where(event));
      this.moved = this.pointers.size > 1;
      this.began = where(event);
      this.outline = this.tool !== "pan" || event.shiftKey ? [where(event)] : [];
    });
    surface.addEventListener("pointermove", (event) => {
      const here = where(event);
      const before = this.pointers.get(event.pointerId);
      if (!before) {
        this.hover(this.at(...here), here);
        return;
      }
      const still = Math.hypot(here[0] - this.began[0], here[1] - this.began[1]) < 4;
      if (still && !this.moved) return;
      this.moved = true;
      this.hover(-1, here);
      if (this.pointers.size === 2) {
        const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
        const factor = Math.hypot(here[0] - other[0], here[1] - other[1]) / (Math.hypot(before[0] - other[0], before[1] - other[1]) || 1);
        this.outline = [];
        this.zoom(factor, (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
      } else if (this.outline.length) {
        this.outline.push(here);
        this.mark();
      } else this.pan(here[0] - before[0], here[1] - before[1]);
      this.pointers.set(event.pointerId, here);
    });
    const end = (event) => {
      if (!this.pointers.delete(event.pointerId)) return;
      if (event.type === "pointerup" && !this.moved) {
        const found = this.at(...where(event), event.pointerType === "touch" ? 24 : NEAR);
        if (found >= 0) this.events.pick(found);
      } else if (event.type === "pointerup" && this.outline.length > 1) this.events.choose(this.enclosed());
      this.outline = [];
      this.mark();
    };
    surface.addEventListener("pointerup", end);
    surface.addEventListener("pointercancel", end);
    surface.addEventListener("pointerleave", () => this.hover(-1, [0, 0]));
  }

  hover(i, here) {
    if (i !== this.hovered) {
      this.hovered = i;
      this.marks.classList.toggle("over", i >= 0);
      this.mark();
    }
    this.events.hover(i, here);
  }
}

// Pixels of a shape of radius r around a point: byte offsets in an image so wide, and how much of each is covered.
function maskOf(shape, r, width) {
  const [offsets, alphas] = [[], []];
  const reach = Math.ceil(r) + 1;
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const round = Math.hypot(x, y);
      const edge = shape === 1 ? (Math.abs(x) + Math.abs(y)) * 0.78 : round;
      let alpha = Math.max(0, Math.min(1, r + 0.5 - edge));
      if (shape === 2) alpha = Math.min(alpha, Math.max(0, Math.min(1, round - 0.5 * r + 0.5)));
      if (alpha > 0.02) {
        offsets.push(4 * (y * width + x));
        alphas.push(alpha);
      }
    }
  }
  return { offsets: Int32Array.from(offsets), alphas: Float32Array.from(alphas) };
}
