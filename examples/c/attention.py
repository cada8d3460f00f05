"""Attention on numpy arrays through ctypes: python3 attention.py libchunkwise.so"""

import ctypes
import sys

import numpy as np

ABI, F32, GLOBAL, ELU = 1, 1, 2, 1
u32, u64, f32, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float, ctypes.c_void_p


class Tensor(ctypes.Structure):
    _fields_ = [("data", pointer), ("dtype", u32), ("rank", u32), ("dims", u64 * 4), ("strides", u64 * 4)]

    @classmethod
    def of(cls, array):
        """A view of f32 whose innermost stride is one element. Transposed and sliced arrays are not copied."""
        assert array.ndim == 4 and array.dtype == np.float32 and min(array.strides) >= 0
        strides = [stride // array.itemsize for stride in array.strides]
        return cls(array.ctypes.data, F32, 4, (u64 * 4)(*array.shape), (u64 * 4)(*strides))


class Headed(ctypes.Structure):
    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(self), abi=ABI, **fields)


class Attention(Headed):
    """The fields of the header from `update` on, and those of a call from `g` on, are left out: they have defaults."""

    _fields_ = [("size", u32), ("abi", u32), ("feature_map", u32), ("normaliser", u32), ("feature_eps", f32),
                ("normaliser_eps", f32), ("chunk", u64), ("scale", f32), ("compensated", u32), ("products", u32),
                ("isa", u32), ("threads", u32), ("not_causal", u32)]


class Call(Headed):
    _fields_ = [("size", u32), ("abi", u32), ("q", Tensor), ("k", Tensor), ("v", Tensor), ("o", Tensor),
                ("state_in", pointer), ("state_out", pointer), ("state_bytes", u64), ("scratch", pointer),
                ("scratch_bytes", u64)]


class Sizes(Headed):
    _fields_ = [("size", u32), ("abi", u32), ("state_bytes", u64), ("state_align", u64),
                ("forward_scratch_bytes", u64), ("decode_scratch_bytes", u64), ("scratch_align", u64)]


lib = ctypes.CDLL(sys.argv[1])
lib.cw_status_string.restype = lib.cw_version.restype = ctypes.c_char_p
assert lib.cw_abi_version() == ABI


def check(status):
    if status:
        raise RuntimeError(lib.cw_status_string(status).decode())


def attention(q, k, v, eps=1e-6, threads=1):
    """Returns o [B, T, H, V] for q, k [B, T, H, K] and v [B, T, H, V]."""
    o = np.empty(v.shape, np.float32)
    what = Attention(feature_map=ELU, normaliser=GLOBAL, normaliser_eps=eps, scale=1, products=1,
                     threads=threads)
    call, sizes = Call(q=Tensor.of(q), k=Tensor.of(k), v=Tensor.of(v), o=Tensor.of(o)), Sizes()
    check(lib.cw_attention_sizes(ctypes.byref(what), ctypes.byref(call), ctypes.byref(sizes)))
    scratch = np.empty(sizes.forward_scratch_bytes, np.uint8)
    call.scratch, call.scratch_bytes = scratch.ctypes.data, scratch.nbytes
    check(lib.cw_forward(ctypes.byref(what), ctypes.byref(call)))
    return o


def definition(q, k, v, eps=1e-6):
    def phi(x):
        return np.where(x > 0, 1 + x, np.exp(np.minimum(x, 0)))

    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.tril(np.einsum("bthi,bshi->bhts", phi(q), phi(k)))
    return np.einsum("bhts,bshj->bthj", scores / (scores.sum(-1, keepdims=True) + eps), v)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((2, 70, 3, 4, 16), np.float32)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # views of packed rows
    got, want = attention(q, k, v), definition(q, k, v)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    print(f"chunkwise {lib.cw_version().decode()}: off by {error:.1e}")
    try:
        attention(q, k[:, :69], v)
        sys.exit("a wrong shape was accepted")
    except RuntimeError as refused:
        print(f"refused: {refused}")
    sys.exit(int(not error < 2e-6))
