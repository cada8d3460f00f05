"""Calls on several threads, before and in processes that multiprocessing forks: python3 threads.py libchunkwise.so"""

import multiprocessing
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/c"))
from attention import attention  # noqa: E402

LIMIT = 60  # seconds after which a child is considered to wait for ever

rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 1, 800, 6, 64), np.float32)
want = attention(q, k, v).tobytes()


def same(_=None):
    return attention(q, k, v, threads=3).tobytes() == want


assert same()
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        assert all(pool.map_async(same, range(6)).get(LIMIT))
    except multiprocessing.TimeoutError:
        sys.exit("threads: a call in a forked process has not returned")
assert same()
print("threads: the same bits in processes of multiprocessing")
