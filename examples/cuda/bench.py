"""How fast attention is on a GPU, beside copies, targets and fla: python3 bench.py libchunkwise.so

All lines take turns, round by round. A time is that of one launch among many in a CUDA graph that is replayed between two
events; each launch has tensors of its own, until they exceed the caches several times. Outputs are NaN before a launch and
are compared with f64 before and after the timing: the exit status is 1 where one is wrong, not where one is slow.

TB/s are of the bytes that must be moved at least: q, k, v and o, and a decode's state there and back. "of copy" is that
speed beside a copy's: of 1 GiB, and for decode of as many bytes. fla gets q and k with the feature map applied already.

--emulator is for tests: tiny shapes, numpy and the driver that the loader finds instead of torch, no fla; its times mean
nothing. --warm compiles fla's kernels on several cores and ends. attention.py says how the library is built.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time

from attention import ELU, GLOBAL, PRODUCTS_BF16, PRODUCTS_F32, Attention, Call, Gpu, Sizes, Tensor

NONE, IDENTITY = 1, 3  # of chunkwise.h
NORMALISERS, MAPS = {NONE: "none", GLOBAL: "global"}, {ELU: "elu", IDENTITY: "identity"}
BF16, F32 = "torch.bfloat16", "torch.float32"
EPS = 1e-6
# What tensors of all launches together exceed: several times the 50 or 60 MB that a Hopper's cache holds.
SPREAD = 300e6
# Errors by norm: outputs are rounded to bf16; with Bf16Dot phi, v, scores and the state are as well, at most 2^-9 each.
# States stay f32.
ROUNDED, DOT, STATE = 2**-9 + 1e-5, 5 * 2**-9, 2e-6
# The targets, in microseconds on an H200, and for decode as a part of a copy's speed.
TARGETS = {(8, 4096, 64): 87, (8, 4096, 128): 212, (1, 16384, 64): 62}
OF_COPY, OF_FLA = 0.85, 1.5


class Torch:
    """A GPU by torch: memory, random numbers, f64, and time by graphs and events."""

    def __init__(self):
        import torch

        self.xp, self.rounds = torch, 30
        torch.manual_seed(0)
        self.name = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"

    def normal(self, shape, dtype=BF16, positive=False):
        tensor = self.xp.randn(shape, device="cuda", dtype=getattr(self.xp, dtype[6:]))
        return tensor.abs_() if positive else tensor

    def bytes(self, size):
        return self.xp.empty(max(size, 1), device="cuda", dtype=self.xp.uint8)

    def poison(self, tensor):
        tensor.fill_(math.nan)

    def clone(self, tensor):
        return tensor.clone()

    def copy(self, to, tensor):
        to.copy_(tensor)

    def double(self, tensor):
        return tensor.double()

    def stream(self):
        return self.xp.cuda.current_stream().cuda_stream

    def wait(self):
        self.xp.cuda.synchronize()

    def timer(self, launches):
        """A function that takes the microseconds of one launch."""
        for launch in launches:  # what is compiled at a first launch can't be while a graph is made
            launch()
        self.wait()
        launches = launches * math.ceil(20 / len(launches))
        graph = self.xp.cuda.CUDAGraph()
        with self.xp.cuda.graph(graph):
            for launch in launches:
                launch()
        begin, end = (self.xp.cuda.Event(enable_timing=True) for _ in range(2))

        def take():
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e3 / len(launches)

        take()
        return take


class Emulated:
    """The same by numpy and the driver's functions."""

    def __init__(self):
        import numpy
        from memory import Driver

        self.xp, self.rounds, self.driver = numpy, 1, Driver()
        self.random = numpy.random.default_rng(0)
        self.name = "the emulator"

    def normal(self, shape, dtype=BF16, positive=False):
        numbers = self.random.standard_normal(shape, self.xp.float32)
        return self.driver.put(abs(numbers) if positive else numbers, dtype)

    def bytes(self, size):
        return self.driver.bytes(size)

    def poison(self, tensor):
        tensor.write(self.xp.full(tensor.shape, math.nan))

    def clone(self, tensor):
        return self.driver.put(tensor.read(), tensor.dtype)

    def copy(self, to, tensor):
        self.driver.call("cuMemcpyDtoDAsync_v2", to.address, tensor.address, ctypes.c_size_t(tensor.size), None)

    def double(self, tensor):
        return tensor.read().astype(float)

    def stream(self):
        return None

    def wait(self):
        self.driver.call("cuCtxSynchronize")

    def timer(self, launches):
        def take():
            begin = time.perf_counter()
            for launch in launches:
                launch()
            self.wait()
            return (time.perf_counter() - begin) * 1e6 / len(launches)

        return take


def error(machine, tensors, phi, normalised, state=None, after=None):
    """||o - exact|| / ||exact|| of outputs o [B, T, H, V], computed in f64 in pieces of 64 tokens; NaN where there is a NaN.
    Where a state is given before and after, it is compared as well: a wrong one makes the error infinite."""
    xp = machine.xp
    q, k, v, o = (machine.double(tensor) for tensor in tensors)
    (batch, tokens, heads, key), value = q.shape, v.shape[3]
    s, z = 0 * k[:, 0, :, :, None] * v[:, 0, :, None, :], 0 * k[:, 0]
    if state is not None:
        state, after = (machine.double(each).reshape(batch, heads, -1) for each in (state, after))
        s = s + state[..., : key * value].reshape(batch, heads, key, value)
        z = z + state[..., key * value :] if normalised else z
    wrong, size = 0.0, 0.0
    for t in range(0, tokens, 64):
        q_t, k_t, v_t = phi(xp, q[:, t : t + 64]), phi(xp, k[:, t : t + 64]), v[:, t : t + 64]
        scores = xp.tril(xp.einsum("bthi,bshi->bhts", q_t, k_t))
        exact = xp.einsum("bhts,bshj->bthj", scores, v_t) + xp.einsum("bthi,bhij->bthj", q_t, s)
        if normalised:
            norm = xp.einsum("bhts->bth", scores) + xp.einsum("bthi,bhi->bth", q_t, z)
            exact = exact / (norm + EPS)[..., None]
        s = s + xp.einsum("bthi,bthj->bhij", k_t, v_t)
        z = z + xp.einsum("bthi->bhi", k_t)
        wrong, size = wrong + ((o[:, t : t + 64] - exact) ** 2).sum(), size + (exact**2).sum()
    if after is not None:
        parts = [(after[..., : key * value].reshape(s.shape), s), (after[..., key * value :], z)][: 1 + normalised]
        if not all(float(((got - exact) ** 2).sum()) <= (STATE**2 * float((exact**2).sum())) for got, exact in parts):
            return math.inf
    return math.sqrt(float(wrong) / float(size))


def elu(xp, x):
    return xp.where(x > 0, 1 + x, xp.exp(xp.clip(x, None, 0)))


def identity(xp, x):
    return x


PHI = {ELU: elu, IDENTITY: identity}


class Line:
    """What is timed: launches on tensors of their own, the bytes that one must move, and the check of one's outputs with
    the error that is allowed."""

    def __init__(self, name, bytes, launches, check=None, allowed=math.inf, target=None, beside=None):
        self.name, self.bytes, self.launches, self.check, self.allowed = name, bytes, launches, check, allowed
        self.target, self.beside = target, beside  # microseconds; the line that it is compared with
        self.times, self.error, self.take = [], None, None

    def verify(self, index, run=None):
        """Compares the outputs of one launch, or of a run of all; the worst so far is kept, and NaN is."""
        if self.check:
            found = self.check(index, run)
            self.error = found if self.error is None or not found <= self.error else self.error

    @property
    def wrong(self):
        return self.error is not None and not self.error <= self.allowed

    @property
    def median(self):
        return statistics.median(self.times)


def sets(bytes, quick):
    return 2 if quick else min(1024, max(2, math.ceil(SPREAD / bytes)))


def copy(machine, name, bytes, quick):
    """Half of the bytes read, half of them written."""
    pairs = [[machine.normal((bytes // 4,)) for _ in range(2)] for _ in range(sets(bytes, quick))]
    return Line(name, bytes, [functools.partial(machine.copy, *pair) for pair in pairs])


class Ours:
    """The library's calls."""

    def __init__(self, machine, library, quick, only):
        self.machine, self.gpu, self.quick, self.only = machine, Gpu(library), quick, only

    def lines(self, shape, normaliser, map, products=PRODUCTS_BF16, decode=False, beside=None):
        """One line, if it is asked for."""
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
            # A run of all takes more than one token.
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


# fla's two functions for many tokens, and what each of --warm's processes compiles.
FLA = ("chunk_linear_attn", "fused_chunk_linear_attn")
WARM = [(FLA[0], 64, False), (FLA[0], 128, False), (FLA[1], 64, True), (FLA[1], 128, False)]


def fla_lines(machine, ours):
    """Beside our lines of the same shape, B = 8, T = 4096, H = 16, and map, which is not in fla's time."""
    import fla.ops.linear_attn as fla

    for dim in (64, 128):
        for normaliser in (NONE, GLOBAL):
            like = f"prefill {NORMALISERS[normaliser]} elu B=8 T=4096 H=16 D={dim} bf16 Bf16Dot"
            beside = next(line for line in ours if line.name == like)
            for function in FLA:
                yield fla_line(machine, getattr(fla, function), (8, 4096, 16, dim), normaliser, beside)


def fla_line(machine, function, shape, normaliser, beside=None):
    inputs = []
    for _ in range(2):
        q, k = (elu(machine.xp, machine.normal(shape)) for _ in range(2))
        inputs.append((q, k, machine.normal(shape)))
    outputs = [None, None]

    def launch(index):
        outputs[index], _ = function(*inputs[index], scale=1.0, normalize=normaliser == GLOBAL)

    def check(index, run):
        if run is None:
            launch(index)
        else:
            machine.poison(outputs[index])
            run()
        machine.wait()
        return error(machine, (*inputs[index], outputs[index]), identity, normaliser == GLOBAL)

    batch, tokens, heads, dim = shape
    name = f"fla {function.__name__} {NORMALISERS[normaliser]} B={batch} T={tokens} H={heads} D={dim} bf16"
    bytes = 2 * 4 * math.prod(shape)
    # Its errors are told, not judged: what it sums in bf16 is its own business.
    return Line(name, bytes, [functools.partial(launch, index) for index in range(2)], check, beside=beside)


def warm():
    """Compiles what fla's autotuning tries, without timing it, in processes beside each other."""
    me = [sys.executable, __file__, *sys.argv[1:], "--warm-one"]
    running = [subprocess.Popen([*me, str(index)]) for index in range(len(WARM))]
    return max(process.wait() for process in running)


def warm_one(index):
    from triton.runtime.autotuner import Autotuner

    run = Autotuner.run

    def once(self, *arguments, **options):
        self.do_bench = lambda call, *_, **__: (call(), [1.0, 1.0, 1.0])[1]
        return run(self, *arguments, **options)

    Autotuner.run = once
    import fla.ops.linear_attn as fla

    function, dim, normalised = WARM[index]
    line = fla_line(Torch(), getattr(fla, function), (8, 4096, 16, dim), GLOBAL if normalised else NONE)
    line.launches[0]()


def prepare(machine, lines, deadline):
    """Lines that were compared with f64 and can be timed; says which can't. What is not ours may fail."""
    for line in lines:
        if time.monotonic() > deadline:
            print(f"NOT measured, for want of time: {line.name}", flush=True)
            continue
        try:
            line.verify(0)
            line.take = machine.timer(line.launches)
        except Exception as failed:
            if not line.name.startswith("fla"):
                raise
            print(f"NOT measured: {line.name}: {failed}", flush=True)
            continue
        yield line


def measure(lines, rounds, deadline):
    for _ in range(rounds):
        for line in lines:
            line.times.append(line.take())
        if time.monotonic() > deadline:
            return


def table(machine, lines):
    """One line for each; a target beside it where there is one."""
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
    # What is tuned here is not to be found in the next run: processes that only compile would leave nonsense.
    os.environ["FLA_CACHE_RESULTS"] = "0"
    if args.fla:
        sys.path.insert(0, args.fla)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (args.fla, os.environ.get("PYTHONPATH"))))
    if args.warm_one is not None:
        return warm_one(args.warm_one)
    if args.warm:
        return warm()

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
        # Told before anything of fla's is waited for.
        measure(lines, 3, deadline)
        table(machine, lines)
        try:
            others = (line for line in fla_lines(machine, list(lines)) if re.search(args.only, line.name))
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
        report["lines"] = [{key: getattr(line, key) for key in keys} for line in lines]
        with open(args.json, "w") as file:
            json.dump(report, file)
    wrong = [line.name for line in lines if line.wrong]
    print(f"{len(lines)} lines, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
