"""Attention on torch's tensors on a GPU, without copies, through ctypes: python3 attention.py libchunkwise.so

The library is built with the feature cuda: cargo rustc --release --features cdylib,cuda --crate-type cdylib
"""

import ctypes
import sys

ABI, GLOBAL, ELU, PRODUCTS_F32, PRODUCTS_BF16 = 1, 2, 1, 1, 2
DTYPES = {"torch.float32": 1, "torch.bfloat16": 2, "torch.float16": 3}
u32, u64, f32, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float, ctypes.c_void_p


class Tensor(ctypes.Structure):
    _fields_ = [("data", pointer), ("dtype", u32), ("rank", u32), ("dims", u64 * 4), ("strides", u64 * 4)]

    @classmethod
    def of(cls, tensor):
        """A view whose innermost stride is one element. Transposed and sliced tensors are not copied."""
        return cls(tensor.data_ptr(), DTYPES[str(tensor.dtype)], 4, (u64 * 4)(*tensor.shape), (u64 * 4)(*tensor.stride()))


class Headed(ctypes.Structure):
    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(self), abi=ABI, **fields)


class Attention(Headed):
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


class Gpu:
    def __init__(self, library, ordinal=0):
        self.lib, self.words, self.handle = ctypes.CDLL(library), ctypes.create_string_buffer(512), pointer()
        self.lib.cw_status_string.restype = ctypes.c_char_p
        self.call("cw_cuda_open", u32(ordinal), ctypes.byref(self.handle))

    def call(self, name, *arguments):
        self.words.value = b""
        status = getattr(self.lib, name)(*arguments, self.words, u64(512))
        if status:
            raise RuntimeError((self.words.value or self.lib.cw_status_string(status)).decode())

    def describe(self, q, k, v, o, products=None, eps=1e-6):
        """The arguments of all functions. products is PRODUCTS_F32 or PRODUCTS_BF16, by default as precise as the tensors."""
        if products is None:
            products = PRODUCTS_F32 if str(q.dtype) == "torch.float32" else PRODUCTS_BF16
        what = Attention(feature_map=ELU, normaliser=GLOBAL, normaliser_eps=eps, scale=1, products=products, threads=1)
        return what, Call(q=Tensor.of(q), k=Tensor.of(k), v=Tensor.of(v), o=Tensor.of(o))

    def prepare(self, q, k, v, o, **options):
        """Compiles the kernels for such tensors, before a capture into a graph or to make the first call as fast as others."""
        what, call = self.describe(q, k, v, o, **options)
        self.call("cw_cuda_prepare", self.handle, ctypes.byref(what), ctypes.byref(call))

    def attention(self, q, k, v, o, stream=None, **options):
        """Computes o [B, T, H, V] from q, k [B, T, H, K] and v [B, T, H, V] on a stream, by default torch's current one."""
        import torch

        stream = stream or torch.cuda.current_stream(q.device)
        what, call = self.describe(q, k, v, o, **options)
        what_and_call, sizes = (self.handle, ctypes.byref(what), ctypes.byref(call)), Sizes()
        self.call("cw_cuda_sizes", *what_and_call, ctypes.byref(sizes))
        # The scratch is allocated for that stream. It is freed before the work is done, but only later work of the same
        # stream can get its memory then.
        with torch.cuda.stream(stream):
            scratch = torch.empty(sizes.forward_scratch_bytes, device=q.device, dtype=torch.uint8)
        call.scratch, call.scratch_bytes = scratch.data_ptr(), sizes.forward_scratch_bytes
        self.call("cw_cuda_forward", *what_and_call, pointer(stream.cuda_stream))
        # The tensors may belong to another stream, whose later work must not get their memory before this work is done.
        for tensor in (q, k, v, o):
            tensor.record_stream(stream)
        return o


def main():
    import torch

    torch.manual_seed(0)
    qkv = torch.randn(2, 700, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.unbind(2)  # views of packed rows
    o = Gpu(sys.argv[1]).attention(q, k, v, torch.empty_like(v, memory_format=torch.contiguous_format))
    phi = lambda x: torch.nn.functional.elu(x.double()) + 1
    scores = torch.tril(torch.einsum("bthi,bshi->bhts", phi(q), phi(k)))
    want = torch.einsum("bhts,bshj->bthj", scores / scores.sum(-1, keepdim=True), v.double())
    error = float((o.double() - want).norm() / want.norm())
    print(f"off by {error:.1e}")
    sys.exit(int(not error < 5e-3))


if __name__ == "__main__":
    main()
