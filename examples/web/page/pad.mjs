// "Draw": the surface for a mouse, a finger or a pen, and the buttons Undo and Clear.
import { css, fill, sharp } from "./canvas.mjs";
import { $ } from "./dom.mjs";
import { FULL, SIDE, coordinates } from "./drawing.mjs";
import { REST } from "./player.mjs";

/** The width of the drawing's pen, as a share of the surface. */
const PEN = 0.085;

export class Pad {
  #page;
  /** The pointer that draws: its id, and the points of its stroke. */
  #stroke = null;
  /** Whether moves wait for the next frame. */
  #pending = false;

  constructor(page) {
    this.#page = page;
    const pad = $("pad");
    pad.addEventListener("pointerdown", (event) => this.#begin(event));
    pad.addEventListener("pointermove", (event) => this.#move(event));
    pad.addEventListener("pointerup", (event) => this.#end(event));
    pad.addEventListener("pointercancel", (event) => this.#end(event));
    $("clear").addEventListener("click", () => page.clear());
    $("undo").addEventListener("click", () => {
      page.drawing.strokes.pop();
      page.changed(null);
      page.announce();
    });
  }

  /** Where a pointer is, from 0 to 1. */
  #point(event) {
    const { left, top, width, height } = $("pad").getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  #begin(event) {
    if (this.#stroke || event.button !== 0) return;
    $("pad").setPointerCapture(event.pointerId);
    this.#stroke = { id: event.pointerId, points: [this.#point(event)] };
    this.#page.drawing.strokes.push(this.#stroke.points);
    this.#page.changed(null);
    event.preventDefault();
  }

  #move(event) {
    if (event.pointerId !== this.#stroke?.id) return;
    // An event of a fast pen stands for several places where the pen was.
    const events = event.getCoalescedEvents?.() ?? [];
    this.#stroke.points.push(...(events.length > 0 ? events : [event]).map((each) => this.#point(each)));
    // The model reads once in a frame, however many moves there are. If the pen is lifted before, `#end` has read them.
    if (this.#pending) return;
    this.#pending = true;
    requestAnimationFrame(() => {
      this.#pending = false;
      if (this.#stroke) this.#page.changed(null);
    });
  }

  #end(event) {
    if (event.pointerId !== this.#stroke?.id) return;
    this.#stroke = null;
    this.#page.changed(REST);
  }

  draw() {
    const { drawing } = this.#page;
    const { base, empty, strokes } = drawing;
    const untouched = empty && strokes.length === 0;
    $("undo").disabled = strokes.length === 0;
    $("clear").disabled = untouched;
    $("hint").hidden = !untouched;

    const { context, width, height } = sharp($("pad"));
    this.#paintPixels(context, width, base);
    if (untouched) this.#paintFrame(context, width, height);
    this.#paintStrokes(context, width, height, strokes);
  }

  #paintPixels(context, width, pixels) {
    const size = width / SIDE;
    pixels.forEach((ink, at) => {
      context.fillStyle = css(this.#page.colours.shade, (0.5 * ink) / FULL);
      const [x, y] = coordinates(at);
      fill(context, x * size, y * size, (x + 1) * size, (y + 1) * size);
    });
  }

  /** The frame shows which shape a digit has. */
  #paintFrame(context, width, height) {
    context.strokeStyle = css(this.#page.colours.line);
    context.setLineDash([4, 5]);
    context.strokeRect(width * 0.22, height * 0.09, width * 0.56, height * 0.82);
    context.setLineDash([]);
  }

  #paintStrokes(context, width, height, strokes) {
    context.strokeStyle = css(this.#page.colours.ink);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * width;
    for (const stroke of strokes) {
      const points = stroke.map(([x, y]) => [x * width, y * height]);
      context.beginPath();
      context.moveTo(...points[0]);
      // The curve goes through the middles of the lines between points, which rounds the corners.
      for (let at = 1; at < points.length - 1; at++) {
        const [x, y] = points[at];
        const [nextX, nextY] = points[at + 1];
        context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
      }
      context.lineTo(...points.at(-1));
      context.stroke();
    }
  }
}
