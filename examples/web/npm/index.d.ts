/**
 * An argument of {@link load}: the bytes of `digits.wasm`, the compiled module, a response that contains it, its address, or a
 * promise of one of these.
 */
export type Source = BufferSource | WebAssembly.Module | Response | URL | string;

/** One of the handwritten digits that the module contains. */
export interface Sample {
  /** The digit that the writer meant, from 0 to 9. */
  readonly label: number;
  /** 64 pixels from 0 (paper) to 1 (ink), row by row. */
  readonly pixels: Float32Array;
}

/**
 * Loads the model.
 *
 * @param source The module. By default it is the file `digits.wasm` in the folder of this file, which node reads and a browser
 *   fetches. With {@link Model.module} of another model, it is not compiled again.
 *
 * @example
 * const model = await load();
 * for (const pixel of model.samples[3].pixels) model.step(pixel);
 */
export function load(source?: Source | PromiseLike<Source>): Promise<Model>;

/**
 * The model: 2 layers of linear attention with 3 heads. It reads a digit of 8 x 8 pixels, each of which is a token, and its state
 * does not grow. Models are independent of each other.
 */
export class Model {
  private constructor();

  /** The compiled module, for {@link load}. */
  readonly module: WebAssembly.Module;
  /** Pixels in a digit: 64. */
  readonly tokens: number;
  /** Answers: 10. */
  readonly classes: number;
  /** Layers: 2. */
  readonly layers: number;
  /** Heads in a layer: 3. */
  readonly heads: number;
  /** K and V, the rows and columns of S: 16. */
  readonly dim: number;
  /** Tokens in a chunk, over which outputs are normalised: 16. */
  readonly chunk: number;
  /** The number of weights, which the module stores in f16. */
  readonly parameters: number;
  /** Lanes of the vectors with which the module computes: 4, those of simd128. */
  readonly lanes: number;
  /** Handwritten digits to try: one of each kind, and two that the model reads wrong. */
  readonly samples: readonly Sample[];

  /** Pixels read since the last {@link reset}. */
  readonly position: number;

  /**
   * The state, a view of the module's memory that every step changes: for each layer and head S `[16, 16]` and z `[16]`
   * of all finished chunks, S and z of the current chunk, and the number of tokens in the current chunk. A copy of it is a
   * snapshot.
   */
  readonly state: Float32Array;

  /** Forgets all pixels, so that the next step reads the first pixel of a digit. */
  reset(): void;

  /**
   * Reads the next pixel.
   *
   * @param pixel Ink from 0 to 1.
   * @returns Ten logits, which are the answer of the model if this is the last pixel.
   * @throws {RangeError} if all pixels have been read.
   */
  step(pixel: number): Float32Array;

  /**
   * Reads a whole digit at once. The logits are those of the last {@link step} up to rounding. The state is neither read nor
   * changed.
   *
   * @param pixels 64 numbers from 0 to 1, row by row.
   * @returns Ten logits.
   * @throws {RangeError} if there are more or fewer pixels.
   */
  forward(pixels: ArrayLike<number>): Float32Array;

  /**
   * A copy of a head's S over all pixels read so far, `[16, 16]` row by row.
   *
   * @throws {RangeError} if there is no such layer or head. Both are counted from 0.
   */
  matrix(layer: number, head: number): Float32Array;
}

/** Probabilities from logits. */
export function softmax(logits: Float32Array | readonly number[]): Float64Array;

/** The index of the largest logit: the digit that the model reads. */
export function answer(logits: Float32Array | readonly number[]): number;
