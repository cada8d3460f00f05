// "The answer as pixels arrive": the probability of each answer after each pixel, and the slider below. Both move the reading.
import { css, fill, sharp } from "./canvas.mjs";
import { $ } from "./dom.mjs";
import { SIDE, TOKENS } from "./drawing.mjs";

export class Strip {
  #page;

  constructor(page) {
    this.#page = page;
    for (let digit = 0; digit < page.reading.model.classes; digit++) {
      const label = document.createElement("li");
      label.textContent = digit;
      $("strip-digits").append(label);
    }
    const strip = $("strip");
    const scrub = (event) => {
      const { left, width } = strip.getBoundingClientRect();
      page.move(Math.ceil(((event.clientX - left) / width) * TOKENS));
    };
    strip.addEventListener("pointerdown", (event) => {
      strip.setPointerCapture(event.pointerId);
      scrub(event);
    });
    strip.addEventListener("pointermove", (event) => event.buttons && scrub(event));
    strip.addEventListener("pointerup", () => page.announce());
    $("position").addEventListener("input", (event) => page.move(Number(event.target.value)));
    $("position").addEventListener("change", () => page.announce());
  }

  draw() {
    const { position } = this.#page.reading;
    const text = `${position} of ${TOKENS} pixels`;
    $("position").value = position;
    $("position").setAttribute("aria-valuetext", text);
    $("position-text").textContent = `${text} read.`;
    this.paint();
  }

  /** Paints the canvas alone. */
  paint() {
    const { context, width, height } = sharp($("strip"));
    const { line, mark, shade } = this.#page.colours;
    const { history, model, position } = this.#page.reading;
    const [column, row] = [width / TOKENS, height / model.classes];
    history.slice(1).forEach((shares, at) => {
      shares.forEach((share, digit) => {
        context.fillStyle = css(shade, share);
        fill(context, at * column, digit * row, (at + 1) * column, (digit + 1) * row);
      });
    });
    // There is a line after each row of the digit, and one between two answers.
    context.fillStyle = css(line);
    for (let at = SIDE; at < TOKENS; at += SIDE) context.fillRect(Math.round(at * column), 0, 1, height);
    for (let digit = 1; digit < model.classes; digit++) context.fillRect(0, Math.round(digit * row), width, 0.5);
    if (position > 0 && position < TOKENS) {
      context.fillStyle = css(mark);
      context.fillRect(position * column - 1, 0, 2, height);
    }
  }
}
