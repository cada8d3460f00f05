// "All that it remembers": S of each layer and head.
import { heat, mix } from "./canvas.mjs";
import { $ } from "./dom.mjs";

export class State {
  #page;
  #canvases;

  constructor(page) {
    this.#page = page;
    const { heads, layers } = page.reading.model;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const figure = document.createElement("figure");
        const name = `layer ${layer + 1}, head ${head + 1}`;
        figure.innerHTML = `<canvas role="img" aria-label="S of ${name}"></canvas><figcaption>${name}</figcaption>`;
        $("matrices").append(figure);
      }
    }
    this.#canvases = [...$("matrices").querySelectorAll("canvas")];
  }

  draw() {
    const { above, below, panel } = this.#page.colours;
    const { model, scales } = this.#page.reading;
    this.#page.reading.matrices().forEach((matrix, at) => {
      heat(this.#canvases[at], model.dim, matrix, (element) => {
        // The root makes small elements visible, too.
        const share = Math.sqrt(Math.min(1, Math.abs(element) / scales[at]));
        return mix(panel, element > 0 ? above : below, share);
      });
    });
  }
}
