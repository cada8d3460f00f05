// The reading: the model, how far it has read the pixels, and what it would have answered after each of them.
import { softmax } from "../npm/index.js";
import { FULL, TOKENS } from "./drawing.mjs";

export class Reading {
  /** The largest element of each head's S, once all pixels are read. */
  scales = [];
  /** The probabilities of the ten answers before the first pixel, and after each pixel that was read. */
  history = [];
  #other;
  #pixels = new Uint8Array(TOKENS);

  /** @param other Another model, which reads ahead and leaves the state that is shown alone. */
  constructor(model, other) {
    this.model = model;
    this.#other = other;
  }

  /** How many pixels have been read. */
  get position() {
    return this.model.position;
  }

  /** The probabilities of the ten answers now. */
  get shares() {
    return this.history[this.position];
  }

  /** The last position: an empty drawing is not read. */
  get end() {
    return this.#pixels.every((ink) => ink === 0) ? 0 : TOKENS;
  }

  /** Takes other pixels, and reads none of them yet. */
  begin(pixels) {
    this.#pixels = pixels;
    this.#findScales();
    this.#rewind();
  }

  /** Reads on, or again from the first pixel, until `position` pixels have been read. */
  seek(position) {
    const target = Math.max(0, Math.min(this.end, position));
    if (target < this.position) this.#rewind();
    while (this.position < target) {
      this.history.push(softmax(this.model.step(this.#pixels[this.position] / FULL)));
    }
  }

  /** Every head's S as it is now, in the order of `scales`. */
  matrices() {
    return heads(this.model);
  }

  #rewind() {
    const { classes } = this.model;
    this.model.reset();
    this.history = [new Float64Array(classes).fill(1 / classes)];
  }

  /** Reads all pixels in the other model. The colours of S then keep their meaning from the first pixel to the last. */
  #findScales() {
    this.#other.reset();
    for (const ink of this.#pixels) this.#other.step(ink / FULL);
    this.scales = heads(this.#other).map((matrix) => matrix.reduce((most, element) => Math.max(most, Math.abs(element)), 1e-9));
  }
}

/** S of every head of a model, layer by layer. */
function heads(model) {
  return Array.from({ length: model.layers * model.heads }, (_, at) => {
    return model.matrix(Math.floor(at / model.heads), at % model.heads);
  });
}
