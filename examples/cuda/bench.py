"""The speed of attention on a GPU, compared with copies, targets and fla: python3 bench.py libchunkwise.so

All lines are measured in turn, in rounds. A time is that of one of many launches in a CUDA graph, which is replayed between
two events. The launches have different tensors, until these exceed the caches several times. Outputs are NaN before a launch
and are compared with f64 before and after the measurement; the exit status is 1 if one is wrong, not if one is slow.

TB/s count the bytes that must at least be moved: q, k, v and o, and for decode the state, read and written. "of copy" is this
speed divided by that of a copy of 1 GiB or, for decode, of as many bytes. fla gets q and k with the feature map applied.

--emulator is for tests: shapes are tiny, numpy and the driver that the loader finds replace torch, fla is left out, and the
times mean nothing. --warm compiles fla's kernels on several cores and exits. attention.py describes how to build the library.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import re
import sys
import time

import bench_fla
from attention import ELU, GLOBAL, PRODUCTS_BF16, PRODUCTS_F32, Attention, Call, Gpu, Sizes, Tensor
from bench_line import DOT, EPS, ROUNDED, Line, copy, elu, error, identity, measure, prepare, sets
from bench_machine import F32, Emulated, Torch

NONE, IDENTITY = 1, 3  # constants of chunkwise.h
NORMALISERS, MAPS = {NONE: "none", GLOBAL: "global"}, {ELU: "elu", IDENTITY: "identity"}
PHI = {ELU: elu, IDENTITY: identity}
# The targets: microseconds on an H200 and, for decode, a part of a copy's speed.
TARGETS = {(8, 4096, 64): 87, (8, 4096, 128): 212, (1, 16384, 64): 62}
OF_COPY, OF_FLA = 0.85, 1.5


class Ours:
    """The library's calls."""

    def __init__(self, machine, library, quick, only):
        self.machine, self.gpu, self.quick, self.only = machine, Gpu(library), quick, only

    def lines(self, shape, normaliser, map, products=PRODUCTS_BF16, decode=False, beside=None):
        """Yields the line of these options if `only` matches its name."""
        machine, (batch, tokens, heads, dim) = self.machine, shape
        dot = products == PRODUCTS_BF16 and not decode
        title = f"{'decode' if decode else 'prefill'} {NORMALISERS[normaliser]} {MAPS[map]}"
        name = f"{title} B={batch} T={tokens} H={heads} D={dim} bf16"
        if not decode:
            name += " Bf16Dot" if dot else " F32"
        if not re.search(self.only, name):
            return
        options = {"feature_map": map, "normaliser": normaliser, "normaliser_eps": EPS, "products": products}
        what = Attention(scale=1, threads=1, **options)
        state_size = batch * heads * (dim * dim + (dim if normaliser == GLOBAL else 0))
        bytes = 2 * 4 * batch * tokens * heads * dim + (2 * 4 * state_size if decode else 0)
        positive = map == IDENTITY and normaliser == GLOBAL
        calls = []
        scratch = None
        for _ in range(sets(bytes, self.quick)):
            q, k = (machine.normal(shape, positive=positive) for _ in range(2))
            v, o = (machine.normal(shape) for _ in range(2))
            machine.poison(o)
            call = Call(**{name: Tensor.of(tensor) for name, tensor in zip("qkvo", (q, k, v, o))})
            state = machine.normal((state_size,), F32, positive=True) if decode else None
            if decode:
                call.state_in = call.state_out = state.data_ptr()
                call.state_bytes = 4 * state_size
            elif scratch is None:
                found = Sizes()
                self.call("cw_cuda_sizes", what, call, ctypes.byref(found))
                scratch = machine.bytes(found.forward_scratch_bytes)
            if scratch is not None:
                call.scratch, call.scratch_bytes = scratch.data_ptr(), found.forward_scratch_bytes
            calls.append((call, (q, k, v, o), state))
        function = "cw_cuda_decode" if decode else "cw_cuda_forward"
        launches = [functools.partial(self.launch, function, what, call, scratch) for call, _, _ in calls]

        def check(index, run):
            _, tensors, state = calls[index]
            machine.poison(tensors[3])
            before = machine.clone(state) if decode else None
            # A run of all launches would decode more than one token on each state.
            (launches[index] if decode or run is None else run)()
            machine.wait()
            return error(machine, tensors, PHI[map], normaliser == GLOBAL, before, state)

        target = TARGETS.get((batch, tokens, dim)) if dot and heads == 16 else None
        yield Line(name, bytes, launches, check, DOT if dot else ROUNDED, target, beside)

    def call(self, function, what, call, *rest):
        self.gpu.call(function, self.gpu.handle, ctypes.byref(what), ctypes.byref(call), *rest)

    def launch(self, function, what, call, _scratch):
        self.call(function, what, call, ctypes.c_void_p(self.machine.stream()))


def our_lines(machine, library, quick, only):
    ours = Ours(machine, library, quick, only)
    largest, longest = ((1, 130, 2), (1, 600, 1)) if quick else ((8, 4096, 16), (1, 16384, 16))
    yield copy(machine, "copy", 1 << 13 if quick else 1 << 30, quick)
    for dim in (64, 128):
        for normaliser in (NONE, GLOBAL):
            for map in (ELU, IDENTITY):
                yield from ours.lines((*largest, dim), normaliser, map)
            yield from ours.lines((*longest, dim), normaliser, ELU)
        for shape in (largest, longest):
            yield from ours.lines((*shape, dim), NONE, ELU, PRODUCTS_F32)
        for batch in (1,) if quick else (1, 8, 256):
            heads = 2 if quick else 16
            bytes = 8 * batch * heads * dim * (dim + 1)
            beside = copy(machine, f"copy of a decode's bytes B={batch} H={heads} D={dim}", bytes, quick)
            yield beside
            for normaliser in (NONE, GLOBAL):
                yield from ours.lines((batch, 1, heads, dim), normaliser, ELU, decode=True, beside=beside)


def table(machine, lines):
    """Prints a row for each line, with its target if it has one."""
    print(f"{machine.name}: medians of {len(lines[0].times)} rounds")
    print(f"{'median us':>10} {'least us':>9} {'TB/s':>5} {'of copy':>7} {'error':>7}")
    speed = lambda line: line.bytes / line.median / 1e6
    for line in lines:
        like = line.beside if line.name.startswith("decode") else lines[0]
        part = speed(line) / speed(like)
        notes = []
        if line.target:
            notes.append(f"aim on an H200: {line.target} us, {'met' if line.median <= line.target else 'NOT met'}")
        if line.name.startswith("decode"):
            notes.append(f"aim: {OF_COPY} of copy, {'met' if part >= OF_COPY else 'NOT met'}")
        if line.name.startswith("fla"):
            ratio = line.median / line.beside.median
            notes.append(f"takes {ratio:.2f} times ours; aim {OF_FLA}, {'met' if ratio >= OF_FLA else 'NOT met'}")
        if line.wrong:
            notes.append(f"WRONG: allowed is {line.allowed:.1e}")
        off = "" if line.error is None else f"{line.error:.1e}"
        times = f"{line.median:10.1f} {min(line.times):9.1f} {speed(line):5.2f} {part:7.2f} {off:>7}"
        print(f"{times}  {'; '.join([line.name, *notes])}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--emulator", action="store_true")
    parser.add_argument("--fla", metavar="FOLDER", help="where fla is; without it only what is installed is found")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--warm-one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", metavar="REGEX", help="copies, and the lines whose names it matches")
    parser.add_argument("--once", action="store_true", help="one launch of each, for a profiler")
    parser.add_argument("--seconds", type=float, default=600, help="begins nothing new after these")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    begin = time.monotonic()
    # fla must not keep the results of its autotuning, because processes that only compile have no valid ones.
    os.environ["FLA_CACHE_RESULTS"] = "0"
    if args.fla:
        sys.path.insert(0, args.fla)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (args.fla, os.environ.get("PYTHONPATH"))))
    if args.warm_one is not None:
        return bench_fla.warm_one(args.warm_one)
    if args.warm:
        return bench_fla.warm()

    machine = Emulated() if args.emulator else Torch()
    wanted = our_lines(machine, args.library, args.emulator, args.only)
    if args.once:
        for line in wanted:
            line.launches[0]()
            machine.wait()
        return 0
    deadline = begin + args.seconds
    lines = list(prepare(machine, wanted, deadline))
    if not args.emulator:
        # The table is printed before fla is run, which takes long.
        measure(lines, 3, deadline)
        table(machine, lines)
        try:
            others = (line for line in bench_fla.lines(machine, list(lines)) if re.search(args.only, line.name))
            lines += prepare(machine, others, begin + 0.8 * args.seconds)
        except Exception as failed:
            print(f"NOT measured: fla: {failed!r}")
    for line in lines:
        line.times.clear()
    measure(lines, machine.rounds, deadline)
    for line in lines:
        line.verify(-1, line.take)
    table(machine, lines)
    if args.json:
        keys = ("name", "bytes", "times", "error", "allowed", "target")
        report = {"machine": machine.name, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        # JSON has no infinity and no NaN.
        known = lambda value: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        report["lines"] = [{key: known(getattr(line, key)) for key in keys} for line in lines]
        with open(args.json, "w") as file:
            json.dump(report, file)
    wrong = [line.name for line in lines if line.wrong]
    print(f"{len(lines)} lines, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
