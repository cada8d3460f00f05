// "Stored digits": buttons that show the digits which the module contains.
import { heat, mix } from "./canvas.mjs";
import { $ } from "./dom.mjs";
import { FULL, SIDE } from "./drawing.mjs";

export class Samples {
  #page;
  #samples;
  #buttons;

  constructor(page) {
    this.#page = page;
    this.#samples = page.reading.model.samples;
    this.#buttons = this.#samples.map(({ label }, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Stored digit ${at + 1}, which is a ${label}`);
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => this.choose(at));
      return button;
    });
    $("samples").append(...this.#buttons);
    this.draw();
  }

  /** Shows a stored digit, which the model then reads. */
  choose(at) {
    this.#page.drawing.replace(Uint8Array.from(this.#samples[at].pixels, (pixel) => pixel * FULL));
    this.#page.changed(0);
    this.mark(at);
  }

  /** Marks the button of the digit that is shown, or no button. */
  mark(shown) {
    this.#buttons.forEach((button, at) => button.setAttribute("aria-pressed", at === shown));
  }

  draw() {
    const { panel, shade } = this.#page.colours;
    this.#buttons.forEach((button, at) => {
      heat(button.firstChild, SIDE, this.#samples[at].pixels, (pixel) => mix(panel, shade, pixel));
    });
  }
}
