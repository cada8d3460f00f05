"""Tensors in a GPU's memory without torch, with numpy and the driver that the loader finds. They have the methods of a
tensor that attention.py uses."""

import ctypes

import numpy as np

SIZES = {"torch.float32": 4, "torch.bfloat16": 2}


class Driver:
    """The driver. The current context is the primary one of the first GPU, which chunkwise uses as well."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        result = getattr(self.library, name)(*arguments)
        if result:
            raise RuntimeError(f"{name} failed with {result}")

    def empty(self, shape, dtype="torch.float32"):
        return Memory(self, shape, dtype)

    def bytes(self, size):
        """Memory for scratch, whose contents are not initialised."""
        return Memory(self, (max(size, 4) // 4,), "torch.float32")

    def put(self, array, dtype="torch.float32"):
        """A tensor with a copy of numbers in f32, rounded to the type."""
        memory = Memory(self, array.shape, dtype)
        memory.write(array)
        return memory


class Memory:
    """A contiguous tensor. It is never freed, because its programs end soon."""

    def __init__(self, driver, shape, dtype):
        self.driver, self.shape, self.dtype = driver, tuple(shape), dtype
        self.size = SIZES[dtype] * int(np.prod(self.shape))
        self.address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(max(self.size, 1)))

    def data_ptr(self):
        return self.address.value

    def stride(self):
        return [int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))]

    def write(self, array):
        array = np.ascontiguousarray(array, np.float32)
        if self.dtype == "torch.bfloat16":
            bits = array.view(np.uint32)
            # Numbers are rounded to the nearest, ties to even. A NaN is truncated, and remains NaN.
            rounded = bits + 0x7FFF + (bits >> 16 & 1)
            array = (np.where(np.isnan(array), bits, rounded) >> 16).astype(np.uint16)
        pointer = array.ctypes.data_as(ctypes.c_void_p)
        self.driver.call("cuMemcpyHtoD_v2", self.address, pointer, ctypes.c_size_t(self.size))

    def read(self):
        """The numbers, in f32."""
        bits = np.empty(self.shape, np.uint32 if self.dtype == "torch.float32" else np.uint16)
        pointer = bits.ctypes.data_as(ctypes.c_void_p)
        self.driver.call("cuMemcpyDtoH_v2", pointer, self.address, ctypes.c_size_t(self.size))
        return (bits if bits.dtype == np.uint32 else bits.astype(np.uint32) << 16).view(np.float32)
