// Uses index.d.ts as a program in TypeScript does. tsc compiles this file, and nothing runs it.
import { answer, load, softmax, type Model, type Sample } from "chunkwise-digits";

export async function read(): Promise<number> {
  const model: Model = await load();
  const again: Model = await load(Promise.resolve(model.module));
  const sample: Sample | undefined = again.samples[3];
  let logits: Float32Array = model.forward(sample?.pixels ?? new Array<number>(64).fill(0));
  model.reset();
  for (const pixel of sample?.pixels ?? []) logits = model.step(pixel);
  const shares: Float64Array = softmax(logits);
  const matrix: Float32Array = model.matrix(0, model.heads - 1);
  // @ts-expect-error: only load makes models.
  new Model();
  // @ts-expect-error: the state is read-only.
  model.state = matrix;
  // @ts-expect-error: a pixel is a number.
  model.step("1");
  return answer(logits) + shares.length + model.position;
}
