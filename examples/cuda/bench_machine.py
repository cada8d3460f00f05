"""The machines on which bench.py runs: a GPU with torch, and an emulated GPU with numpy."""

import ctypes
import math
import time

BF16, F32 = "torch.bfloat16", "torch.float32"


class Torch:
    """Memory, random numbers, f64 and time on a GPU, with torch."""

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
        """Returns a function that measures the microseconds of one launch."""
        for launch in launches:  # the first launch compiles kernels, which is not possible during a capture
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
    """The same with numpy and the driver's functions."""

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
