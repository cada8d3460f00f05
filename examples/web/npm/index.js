// The model of handwritten digits. index.d.ts documents what is exported here.

/** The value that the module returns if all pixels have been read. */
const NO_MORE = 2;

/** The compiled module of an argument of `load`. */
async function compiled(source) {
  let from = await source;
  if (from instanceof WebAssembly.Module) return from;
  if (from instanceof URL || typeof from === "string") {
    const url = new URL(from, import.meta.url);
    // `fetch` does not read files, but node does.
    if (url.protocol === "file:" && typeof process === "object") {
      const { readFile } = await import("node:fs/promises");
      from = await readFile(url);
    } else {
      from = await fetch(url);
    }
  }
  if (typeof Response === "function" && from instanceof Response) {
    if (!from.ok) throw new Error(`the module could not be fetched: ${from.status} ${from.statusText}`);
    from = await from.arrayBuffer();
  }
  return WebAssembly.compile(from);
}

export async function load(source = new URL("./digits.wasm", import.meta.url)) {
  const module = await compiled(source);
  return new Model(module, await WebAssembly.instantiate(module));
}

export class Model {
  #calls;
  #pixels;
  #logits;
  #position = 0;

  constructor(module, instance) {
    const calls = instance.exports;
    if (calls.start() !== 0) throw new Error("the module has too little memory for its model");
    this.#calls = calls;
    // The module never grows its memory, so a view that is made once stays valid.
    const { buffer } = calls.memory;
    const [tokens, classes, layers, heads, dim, chunk, state, parameters, samples] = new Uint32Array(
      buffer,
      calls.sizes(),
      9,
    );
    this.module = module;
    this.tokens = tokens;
    this.classes = classes;
    this.layers = layers;
    this.heads = heads;
    this.dim = dim;
    this.chunk = chunk;
    this.parameters = parameters;
    this.lanes = calls.lanes();
    this.state = new Float32Array(buffer, calls.state(), state);
    this.#pixels = new Float32Array(buffer, calls.pixels(), tokens);
    this.#logits = new Float32Array(buffer, calls.logits(), classes);
    const bytes = new Uint8Array(buffer, calls.samples(), samples * (1 + tokens));
    this.samples = Array.from({ length: samples }, (_, at) => {
      const [label, ...pixels] = bytes.subarray(at * (1 + tokens), (at + 1) * (1 + tokens));
      return { label, pixels: Float32Array.from(pixels, (pixel) => pixel / 16) };
    });
  }

  get position() {
    return this.#position;
  }

  reset() {
    this.#calls.reset();
    this.#position = 0;
  }

  step(pixel) {
    this.#check(this.#calls.step(pixel));
    this.#position += 1;
    return this.#logits.slice();
  }

  forward(pixels) {
    if (pixels.length !== this.tokens) {
      throw new RangeError(`a digit has ${this.tokens} pixels, not ${pixels.length}`);
    }
    this.#pixels.set(pixels);
    this.#check(this.#calls.forward());
    return this.#logits.slice();
  }

  matrix(layer, head) {
    const at = (index, count) => Number.isInteger(index) && index >= 0 && index < count;
    if (!at(layer, this.layers) || !at(head, this.heads)) {
      throw new RangeError(`there are ${this.layers} layers of ${this.heads} heads`);
    }
    // A head's state: S [K, V] and z [K] of all finished chunks, the same of the current chunk, and a count.
    const size = this.dim * this.dim;
    const sums = size + this.dim;
    const begin = (layer * this.heads + head) * (2 * sums + 1);
    const matrix = this.state.slice(begin, begin + size);
    const current = this.state.subarray(begin + sums, begin + sums + size);
    return matrix.map((sum, at) => sum + current[at]);
  }

  #check(code) {
    if (code === NO_MORE) throw new RangeError(`a digit has ${this.tokens} pixels; reset() begins another one`);
    if (code !== 0) throw new Error("the model refused to compute");
  }
}

export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

export function answer(logits) {
  return logits.indexOf(Math.max(...logits));
}
