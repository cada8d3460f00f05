// The page: a drawing becomes pixels, the model reads them, and what it has in mind is drawn.
import { answer, load, softmax } from "../npm/index.js";
import { place, reduce } from "./reduce.mjs";

const $ = (id) => document.getElementById(id);
const SIDE = 8;
const TOKENS = SIDE * SIDE;
const FULL = 16;
/** What a dab of the keyboard's pen leaves, in a pixel and in the four around it. A full pixel among empty ones is unlike any
 * that the model has seen. */
const DAB = [14, 2];
/** The drawing's pen, as a share of the surface. */
const PEN = 0.085;
/** How long the pen must rest before the model begins to read. */
const REST = 650;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** A number as text, in groups of three digits. */
const grouped = (number) => Math.round(number).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0995 ? 1 : 0)}\u202f%`;

/** The colours of the style sheet as numbers, for canvases. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  return Object.fromEntries(["panel", "ink", "line", "mark", "above", "below", "shade"].map((name) => [name, colour(`--${name}`)]));
}

const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;
const mix = (from, to, share) => from.map((part, at) => part + (to[at] - part) * share);

/** A canvas whose pixels are those of the screen. */
function sharp(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

/** A rectangle between whole pixels of the screen: neighbours have no seam between them. */
function fill(context, left, top, right, bottom) {
  const scale = devicePixelRatio || 1;
  const [x, y, x2, y2] = [left, top, right, bottom].map((edge) => Math.round(edge * scale) / scale);
  context.fillRect(x, y, x2 - x, y2 - y);
}

/** Paints a small matrix, one pixel of the canvas for each element. */
function heat(canvas, columns, values, colour) {
  const rows = values.length / columns;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  values.forEach((value, at) => image.data.set([...colour(value), 255], 4 * at));
  context.putImageData(image, 0, 0);
}

async function main() {
  const bytes = Uint8Array.from(atob($("module").textContent), (letter) => letter.charCodeAt(0));
  const model = await load(bytes);
  // What it reads ahead, and the time it takes, must not disturb the state that is shown.
  const other = await load(model.module);
  const page = new Page(model, other);
  const facts = {
    "state-bytes": grouped(model.state.byteLength),
    "module-bytes": grouped(bytes.length),
    parameters: grouped(model.parameters),
    dim: model.dim,
    chunk: model.chunk,
    lanes: model.lanes,
  };
  for (const element of document.querySelectorAll("[data-fact]")) {
    element.textContent = facts[element.dataset.fact];
  }
  page.choose(3);
  document.documentElement.dataset.ready = "";
  await measure(other);
}

class Page {
  /** The pixels of a stored digit or of the keyboard, to which strokes are added. */
  #base = new Uint8Array(TOKENS);
  #strokes = [];
  /** What the model reads: base and strokes. */
  #pixels = new Uint8Array(TOKENS);
  /** Softmax of the logits before the first pixel, and after each pixel read so far. */
  #history = [];
  /** The largest element of each head's S once all pixels are read. */
  #scales = [];
  #cursor = 27;
  #playing = false;
  #timer = 0;

  constructor(model, other) {
    this.model = model;
    this.other = other;
    this.colours = colours();
    this.#buildGrid();
    this.#buildBars();
    this.#buildMatrices();
    this.#buildSamples();
    this.#listenToPad();
    this.#listenToControls();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.colours = colours();
      this.#drawAll();
      this.#drawSamples();
    });
    new ResizeObserver(() => {
      this.#drawPad();
      this.#drawStrip();
    }).observe($("pad"));
  }

  // What is there.

  #buildGrid() {
    for (let y = 0; y < SIDE; y++) {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      for (let x = 0; x < SIDE; x++) {
        const cell = document.createElement("span");
        cell.setAttribute("role", "gridcell");
        cell.addEventListener("click", () => this.#toggle(y * SIDE + x));
        row.append(cell);
      }
      $("grid").append(row);
    }
    this.cells = [...$("grid").querySelectorAll("span")];
    this.cells[this.#cursor].tabIndex = 0;
    $("grid").addEventListener("keydown", (event) => this.#key(event));
  }

  #buildBars() {
    for (let digit = 0; digit < this.model.classes; digit++) {
      const item = document.createElement("li");
      item.innerHTML = `<span>${digit}</span><span class="bar"><i></i></span><span class="share"></span>`;
      $("bars").append(item);
      const label = document.createElement("li");
      label.textContent = digit;
      $("strip-digits").append(label);
    }
    this.bars = [...$("bars").children];
  }

  #buildMatrices() {
    for (let layer = 0; layer < this.model.layers; layer++) {
      for (let head = 0; head < this.model.heads; head++) {
        const figure = document.createElement("figure");
        const name = `layer ${layer + 1}, head ${head + 1}`;
        figure.innerHTML = `<canvas role="img" aria-label="S of ${name}"></canvas><figcaption>${name}</figcaption>`;
        $("matrices").append(figure);
      }
    }
    this.matrices = [...$("matrices").querySelectorAll("canvas")];
  }

  #buildSamples() {
    this.model.samples.forEach(({ label }, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Stored digit ${at + 1}, which is a ${label}`);
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => this.choose(at));
      $("samples").append(button);
    });
    this.#drawSamples();
  }

  // What is drawn by the user.

  /** Shows a stored digit and reads it. */
  choose(at) {
    this.#strokes = [];
    this.#base = Uint8Array.from(this.model.samples[at].pixels, (pixel) => pixel * FULL);
    this.#changed(0);
    [...$("samples").children].forEach((button, other) => button.setAttribute("aria-pressed", other === at));
  }

  #listenToPad() {
    const pad = $("pad");
    let stroke = null;
    const point = (event) => {
      const { left, top, width, height } = pad.getBoundingClientRect();
      return [(event.clientX - left) / width, (event.clientY - top) / height];
    };
    pad.addEventListener("pointerdown", (event) => {
      if (stroke || event.button !== 0) return;
      pad.setPointerCapture(event.pointerId);
      stroke = { id: event.pointerId, points: [point(event)] };
      this.#strokes.push(stroke.points);
      this.#changed(null);
      event.preventDefault();
    });
    pad.addEventListener("pointermove", (event) => {
      if (event.pointerId !== stroke?.id) return;
      // A fast pen has been at more places than there are events.
      const events = event.getCoalescedEvents?.() ?? [];
      stroke.points.push(...(events.length > 0 ? events : [event]).map(point));
      // Of the moves between two frames only the last one is read. Where the pen has been lifted by then, that was read.
      if (this.pending) return;
      this.pending = true;
      requestAnimationFrame(() => {
        this.pending = false;
        if (stroke) this.#changed(null);
      });
    });
    const end = (event) => {
      if (event.pointerId !== stroke?.id) return;
      stroke = null;
      this.#changed(REST);
    };
    pad.addEventListener("pointerup", end);
    pad.addEventListener("pointercancel", end);
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const at = this.#cursor;
    const ink = this.#pixels[at];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const [x, y] = [(at % SIDE) + dx, Math.floor(at / SIDE) + dy];
      if (x >= 0 && x < SIDE && y >= 0 && y < SIDE) this.#focus(y * SIDE + x);
    } else if (event.key === "Home" || event.key === "End") {
      this.#focus(at - (at % SIDE) + (event.key === "End" ? SIDE - 1 : 0));
    } else if (event.key === " " || event.key === "Enter") {
      this.#toggle(at);
    } else if (event.key === "+" || event.key === "=") {
      this.#edit((pixels) => (pixels[at] = Math.min(FULL, ink + 1)));
    } else if (event.key === "-") {
      this.#edit((pixels) => (pixels[at] = Math.max(0, ink - 1)));
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }

  #focus(at) {
    this.cells[this.#cursor].tabIndex = -1;
    this.#cursor = at;
    this.cells[at].tabIndex = 0;
    this.cells[at].focus();
  }

  #toggle(at) {
    this.#focus(at);
    this.#edit((pixels) => {
      if (pixels[at] > DAB[1]) {
        pixels[at] = 0;
        return;
      }
      const [x, y] = [at % SIDE, Math.floor(at / SIDE)];
      pixels[at] = DAB[0];
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        const [nx, ny] = [x + dx, y + dy];
        if (nx >= 0 && nx < SIDE && ny >= 0 && ny < SIDE) {
          pixels[ny * SIDE + nx] = Math.max(pixels[ny * SIDE + nx], DAB[1]);
        }
      }
    });
  }

  /** Changes pixels; what was drawn before stays as it is, and is no longer scaled. */
  #edit(change) {
    this.#base = this.#pixels.slice();
    this.#strokes = [];
    change(this.#base);
    this.#changed(2 * REST);
  }

  clear() {
    this.#base = new Uint8Array(TOKENS);
    this.#strokes = [];
    this.#changed(null);
    this.#announce();
  }

  /** Takes over what was drawn. The model reads it to the end, and once more to be watched, after `wait` milliseconds. */
  #changed(wait) {
    this.#stop();
    clearTimeout(this.#timer);
    const free = this.#base.every((pixel) => pixel === 0);
    if (free) {
      this.#pixels = reduce(this.#strokes);
    } else {
      const added = place(this.#strokes, 1);
      this.#pixels = this.#base.map((pixel, at) => Math.min(FULL, pixel + added[at]));
    }
    for (const button of $("samples").children) button.setAttribute("aria-pressed", "false");
    this.#readAhead();
    this.#rewind();
    this.#seek(this.#empty() ? 0 : TOKENS);
    this.#drawPad();
    if (wait === null || this.#empty()) return;
    this.#timer = setTimeout(() => {
      if (calm.matches) this.#announce();
      else this.#play();
    }, wait);
  }

  #empty() {
    return this.#pixels.every((pixel) => pixel === 0);
  }

  // What the model does.

  /** Reads all pixels in another model, for the scales of the colours of S. */
  #readAhead() {
    const { other } = this;
    other.reset();
    for (const pixel of this.#pixels) other.step(pixel / FULL);
    this.#scales = this.matrices.map((_, at) => {
      const matrix = other.matrix(Math.floor(at / other.heads), at % other.heads);
      return matrix.reduce((most, element) => Math.max(most, Math.abs(element)), 1e-9);
    });
  }

  #rewind() {
    this.model.reset();
    this.#history = [new Float64Array(this.model.classes).fill(1 / this.model.classes)];
  }

  /** Reads on, or again from the first pixel, until `position` pixels have been read. */
  #seek(position) {
    const { model } = this;
    if (position < model.position) this.#rewind();
    while (model.position < position) {
      this.#history.push(softmax(model.step(this.#pixels[model.position] / FULL)));
    }
    this.#drawAll();
  }

  #play() {
    if (this.#empty()) return;
    if (this.model.position === TOKENS) this.#seek(0);
    this.#playing = true;
    $("play").textContent = "Pause";
    let before = performance.now();
    let due = 0;
    const frame = (now) => {
      if (!this.#playing) return;
      due += (Math.max(0, now - before) / 1000) * speed();
      before = now;
      const whole = Math.floor(due);
      if (whole > 0) {
        due -= whole;
        this.#seek(Math.min(TOKENS, this.model.position + whole));
      }
      if (this.model.position === TOKENS) {
        this.#stop();
        this.#announce();
      } else {
        requestAnimationFrame(frame);
      }
    };
    requestAnimationFrame(frame);
  }

  #stop() {
    this.#playing = false;
    $("play").textContent = "Play";
  }

  /** Moves by hand. */
  #move(position) {
    clearTimeout(this.#timer);
    this.#stop();
    this.#seek(Math.max(0, Math.min(this.#empty() ? 0 : TOKENS, position)));
  }

  #listenToControls() {
    $("clear").addEventListener("click", () => this.clear());
    $("undo").addEventListener("click", () => {
      this.#strokes.pop();
      this.#changed(null);
      this.#announce();
    });
    $("play").addEventListener("click", () => {
      clearTimeout(this.#timer);
      if (this.#playing) {
        this.#stop();
        this.#announce();
      } else {
        this.#play();
      }
    });
    $("step").addEventListener("click", () => {
      this.#move(this.model.position === TOKENS ? 1 : this.model.position + 1);
      this.#announce();
    });
    $("position").addEventListener("input", (event) => this.#move(Number(event.target.value)));
    $("position").addEventListener("change", () => this.#announce());
    const scrub = (event) => {
      const { left, width } = $("strip").getBoundingClientRect();
      this.#move(Math.ceil(((event.clientX - left) / width) * TOKENS));
    };
    $("strip").addEventListener("pointerdown", (event) => {
      $("strip").setPointerCapture(event.pointerId);
      scrub(event);
    });
    $("strip").addEventListener("pointermove", (event) => event.buttons && scrub(event));
    $("strip").addEventListener("pointerup", () => this.#announce());
    const show = () => {
      $("speed-text").textContent = `${grouped(speed())} pixels/s`;
    };
    $("speed").addEventListener("input", show);
    show();
    $("again").addEventListener("click", () => measure(this.other));
  }

  // What is shown.

  /** Says in words what the bars show, where reading has come to rest. */
  #announce() {
    const { position } = this.model;
    const shares = this.#history[position];
    if (this.#empty()) {
      $("answer").textContent = "Nothing is drawn.";
    } else if (position === 0) {
      $("answer").textContent = "No pixel has been read.";
    } else {
      const digit = answer([...shares]);
      const after = position === TOKENS ? "all 64 pixels" : `${position} of 64 pixels`;
      $("answer").textContent = `After ${after}, the model reads ${digit}, with ${percent(shares[digit])}.`;
    }
  }

  #drawAll() {
    const { position } = this.model;
    const shares = this.#history[position];
    const digit = answer([...shares]);
    const known = position > 0 && !this.#empty();
    $("numeral").textContent = known ? digit : "–";
    $("numeral").classList.toggle("unsure", !known || shares[digit] < 0.5);
    if (known && position < TOKENS) $("answer").textContent = "";
    this.bars.forEach((bar, at) => {
      bar.style.setProperty("--share", shares[at].toFixed(4));
      bar.querySelector(".share").textContent = percent(shares[at]);
      bar.classList.toggle("most", known && at === digit);
    });
    this.cells.forEach((cell, at) => {
      const ink = this.#pixels[at];
      cell.style.setProperty("--dark", `${(100 * ink) / FULL}%`);
      cell.classList.toggle("ahead", at >= position);
      cell.classList.toggle("now", at === position - 1 && position < TOKENS);
      if (Number(cell.dataset.ink) !== ink || !cell.dataset.ink) {
        cell.dataset.ink = ink;
        const place = `row ${Math.floor(at / SIDE) + 1}, column ${(at % SIDE) + 1}`;
        cell.setAttribute("aria-label", `${place}: ${ink === 0 ? "no ink" : `ink ${ink} of ${FULL}`}`);
      }
    });
    $("position").value = position;
    $("position").setAttribute("aria-valuetext", `${position} of ${TOKENS} pixels`);
    $("position-text").textContent = `${position} of ${TOKENS} pixels read.`;
    $("undo").disabled = this.#strokes.length === 0;
    $("clear").disabled = $("play").disabled = $("step").disabled = this.#empty();
    $("clear").disabled &&= this.#strokes.length === 0;
    $("hint").hidden = !this.#empty() || this.#strokes.length > 0;
    this.#drawMatrices();
    this.#drawStrip();
  }

  #drawMatrices() {
    const { above, below, panel } = this.colours;
    this.matrices.forEach((canvas, at) => {
      const matrix = this.model.matrix(Math.floor(at / this.model.heads), at % this.model.heads);
      heat(canvas, this.model.dim, matrix, (element) => {
        // The root shows small elements too.
        const share = Math.sqrt(Math.min(1, Math.abs(element) / this.#scales[at]));
        return mix(panel, element > 0 ? above : below, share);
      });
    });
  }

  #drawStrip() {
    const { context, width, height } = sharp($("strip"));
    const { ink, line, mark, shade } = this.colours;
    const { classes, position } = this.model;
    const [column, row] = [width / TOKENS, height / classes];
    for (let at = 1; at <= position; at++) {
      this.#history[at].forEach((share, digit) => {
        context.fillStyle = css(shade, share);
        fill(context, (at - 1) * column, digit * row, at * column, (digit + 1) * row);
      });
    }
    // A line after each row of the digit.
    context.fillStyle = css(line);
    for (let at = SIDE; at < TOKENS; at += SIDE) context.fillRect(Math.round(at * column), 0, 1, height);
    for (let digit = 1; digit < classes; digit++) context.fillRect(0, Math.round(digit * row), width, 0.5);
    if (position > 0) {
      context.fillStyle = css(position < TOKENS ? mark : ink, position < TOKENS ? 1 : 0);
      context.fillRect(position * column - 1, 0, 2, height);
    }
  }

  #drawPad() {
    const { context, width, height } = sharp($("pad"));
    const { line, ink, shade } = this.colours;
    const cell = width / SIDE;
    this.#base.forEach((pixel, at) => {
      context.fillStyle = css(shade, (0.5 * pixel) / FULL);
      const [x, y] = [at % SIDE, Math.floor(at / SIDE)];
      fill(context, x * cell, y * cell, (x + 1) * cell, (y + 1) * cell);
    });
    if (this.#empty() && this.#strokes.length === 0) {
      context.strokeStyle = css(line);
      context.setLineDash([4, 5]);
      context.strokeRect(width * 0.22, height * 0.09, width * 0.56, height * 0.82);
      context.setLineDash([]);
    }
    context.strokeStyle = css(ink);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * width;
    for (const stroke of this.#strokes) {
      const points = stroke.map(([x, y]) => [x * width, y * height]);
      context.beginPath();
      context.moveTo(...points[0]);
      // Through the middles of the lines between points, which rounds the corners.
      for (let at = 1; at < points.length - 1; at++) {
        const [x, y] = points[at];
        const [nx, ny] = points[at + 1];
        context.quadraticCurveTo(x, y, (x + nx) / 2, (y + ny) / 2);
      }
      context.lineTo(...points.at(-1));
      context.stroke();
    }
  }

  #drawSamples() {
    const { panel, shade } = this.colours;
    [...$("samples").children].forEach((button, at) => {
      heat(button.firstChild, SIDE, this.model.samples[at].pixels, (pixel) => mix(panel, shade, pixel));
    });
  }
}

/** Pixels in a second, on a scale of ratios from 2 to 500. */
function speed() {
  const exact = 2 * 250 ** (Number($("speed").value) / 100);
  return exact < 10 ? Math.round(exact) : Number(exact.toPrecision(2));
}

/**
 * Measures a step. A browser's clock is coarse, so many digits are read between two looks at it, and the median of many such
 * batches is shown: what else the machine does makes some of them longer.
 */
async function measure(model) {
  $("again").disabled = true;
  const batch = (digits) => {
    const begin = performance.now();
    for (let digit = 0; digit < digits; digit++) {
      model.reset();
      for (let at = 0; at < TOKENS; at++) model.step(at / TOKENS);
    }
    return performance.now() - begin;
  };
  let digits = 1;
  while (batch(digits) < 8 && digits < 4096) digits *= 2;
  const times = [];
  while (times.length < 25) {
    // The page stays responsive meanwhile.
    await new Promise((resolve) => setTimeout(resolve));
    times.push(batch(digits) / (digits * TOKENS));
  }
  times.sort((a, b) => a - b);
  const step = times[Math.floor(times.length / 2)];
  $("time").textContent = (1000 * step).toFixed(step < 0.01 ? 2 : 1);
  $("rate").textContent = grouped(Number((1000 / step).toPrecision(3)));
  $("time-text").textContent = `The median of ${times.length} batches of ${grouped(digits * TOKENS)} steps, the ten answers included.`;
  $("again").disabled = false;
}

main().catch((error) => {
  $("failure").textContent = `The model does not run here: ${error.message}. It needs a browser with WebAssembly's simd128.`;
  $("failure").hidden = false;
});
