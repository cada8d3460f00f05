"""The lines that bench.py measures: their launches, and the comparison of their outputs with f64."""

import functools
import math
import statistics
import time

EPS = 1e-6  # eps of the global normaliser
# The least bytes of the tensors of all launches of a line: several times the 50 or 60 MB of a Hopper's cache.
SPREAD = 300e6
# The norm errors that are allowed. Outputs are rounded to bf16; with Bf16Dot phi, v, scores and the state are as well, each
# with an error of at most 2^-9. States are stored in f32.
ROUNDED, DOT, STATE = 2**-9 + 1e-5, 5 * 2**-9, 2e-6


def error(machine, tensors, phi, normalised, state=None, after=None):
    """||o - exact|| / ||exact|| of outputs o [B, T, H, V], computed in f64 in pieces of 64 tokens; NaN if anything is NaN.
    If a state before and after the call is given, it is compared as well, and the error is infinite if it is wrong."""
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


class Line:
    """A line: launches on different tensors, the bytes that each must move, the check of their outputs, and the error that
    is allowed."""

    def __init__(self, name, bytes, launches, check=None, allowed=math.inf, target=None, beside=None):
        self.name, self.bytes, self.launches, self.check, self.allowed = name, bytes, launches, check, allowed
        self.target, self.beside = target, beside  # microseconds; the line that it is compared with
        self.times, self.error, self.take = [], None, None

    def verify(self, index, run=None):
        """Compares the outputs of one launch, or of a run of all launches; keeps the largest error so far, or NaN."""
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
    """A line of copies, which read half of the bytes and write the other half."""
    pairs = [[machine.normal((bytes // 4,)) for _ in range(2)] for _ in range(sets(bytes, quick))]
    return Line(name, bytes, [functools.partial(machine.copy, *pair) for pair in pairs])


def prepare(machine, lines, deadline):
    """Yields the lines that were compared with f64 and can be timed, and prints the others. Lines of fla may fail."""
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
