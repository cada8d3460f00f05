// run.mjs MODULE LANES: the module computes what the oracle says, on as many lanes as it was compiled for.
import { readFileSync } from "node:fs";

const [path, lanes] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(path));
const answer = BigInt.asUintN(64, instance.exports.compare());
const [made, failed] = [Number(answer >> 32n), Number(answer & 0xffffffffn)];
const have = instance.exports.lanes();
console.log(`wasm32 with ${have} lanes at best: ${made} comparisons, ${failed} failed`);
if (made === 0 || failed !== 0 || have !== Number(lanes)) {
  console.error(`expected no failure among some, and ${lanes} lanes; the last one (TTKKVVnm): ${instance.exports.last_failure()}`);
  process.exit(1);
}
