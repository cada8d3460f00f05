// run.mjs MODULE LANES: checks that the module's results agree with the oracle, and that it has as many lanes as it was compiled for.
import { readFileSync } from "node:fs";

const [path, lanes] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(path));
const answer = BigInt.asUintN(64, instance.exports.compare());
const [made, failed] = [Number(answer >> 32n), Number(answer & 0xffffffffn)];
const have = instance.exports.lanes();
console.log(`wasm32 with ${have} lanes at best: ${made} comparisons, ${failed} failed`);
if (made === 0 || failed !== 0 || have !== Number(lanes)) {
  console.error(`expected comparisons without a failure, on ${lanes} lanes; last failure (TTKKVVnm): ${instance.exports.last_failure()}`);
  process.exit(1);
}
