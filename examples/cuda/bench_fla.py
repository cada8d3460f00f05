"""Lines of bench.py for fla: its functions for many tokens, on q and k to which the feature map is applied already."""

import functools
import math
import subprocess
import sys

from bench_line import Line, elu, error, identity
from bench_machine import Torch

# fla's functions, and what each process of --warm compiles: a function, K = V, and whether it is normalised.
FUNCTIONS = ("chunk_linear_attn", "fused_chunk_linear_attn")
WARM = [(FUNCTIONS[0], 64, False), (FUNCTIONS[0], 128, False), (FUNCTIONS[1], 64, True), (FUNCTIONS[1], 128, False)]


def lines(machine, ours):
    """Lines for B = 8, T = 4096, H = 16, each with our line of the same shape. fla's time does not include the map."""
    import fla.ops.linear_attn as fla

    for dim in (64, 128):
        for normaliser in ("none", "global"):
            like = f"prefill {normaliser} elu B=8 T=4096 H=16 D={dim} bf16 Bf16Dot"
            beside = next(line for line in ours if line.name == like)
            for function in FUNCTIONS:
                yield timed(machine, getattr(fla, function), (8, 4096, 16, dim), normaliser, beside)


def timed(machine, function, shape, normaliser, beside=None):
    inputs = []
    for _ in range(2):
        q, k = (elu(machine.xp, machine.normal(shape)) for _ in range(2))
        inputs.append((q, k, machine.normal(shape)))
    outputs = [None, None]

    def launch(index):
        outputs[index], _ = function(*inputs[index], scale=1.0, normalize=normaliser == "global")

    def check(index, run):
        if run is None:
            launch(index)
        else:
            machine.poison(outputs[index])
            run()
        machine.wait()
        return error(machine, (*inputs[index], outputs[index]), identity, normaliser == "global")

    batch, tokens, heads, dim = shape
    name = f"fla {function.__name__} {normaliser} B={batch} T={tokens} H={heads} D={dim} bf16"
    bytes = 2 * 4 * math.prod(shape)
    # fla's errors are printed but not limited, because fla may sum in bf16.
    return Line(name, bytes, [functools.partial(launch, index) for index in range(2)], check, beside=beside)


def warm():
    """Compiles what fla's autotuning tries, without timing it, in several processes at the same time."""
    me = [sys.executable, *sys.argv, "--warm-one"]
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
    line = timed(Torch(), getattr(fla, function), (8, 4096, 16, dim), "global" if normalised else "none")
    line.launches[0]()
