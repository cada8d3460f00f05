"""Makes the golden files of gradients: JAX differentiates the recurrence in f64. `scripts/gradient-golden` runs it."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)

MAPS = {
    "elu": lambda x: jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))),
    "relu": lambda x: jnp.where(x > 0, x, 0) + 1e-6,
    "identity": lambda x: x,
}

# name: map, normaliser, chunk, gate, heads of q, k and v, order, T, K, V, states
CASES = {
    "none_identity": ("identity", "none", None, False, (2, 2, 2), "interleaved", 19, 5, 7, False),
    "none_relu_states": ("relu", "none", None, False, (2, 2, 2), "interleaved", 33, 16, 9, True),
    "global_elu": ("elu", "global", None, False, (1, 1, 1), "interleaved", 50, 17, 20, False),
    "global_elu_states": ("elu", "global", None, False, (2, 2, 2), "interleaved", 26, 8, 33, True),
    "chunk_elu": ("elu", "per_chunk", 8, False, (2, 2, 2), "interleaved", 27, 6, 10, False),
    "chunk_relu_states": ("relu", "per_chunk", 16, False, (1, 1, 1), "interleaved", 41, 12, 5, True),
    "grouped_query": ("elu", "global", None, False, (4, 2, 2), "interleaved", 25, 7, 6, True),
    "grouped_value_tiled": ("elu", "none", None, False, (2, 2, 4), "tiled", 25, 7, 6, True),
    "gated": ("identity", "none", None, True, (2, 2, 2), "interleaved", 35, 16, 16, False),
    "gated_states": ("identity", "none", None, True, (1, 1, 3), "interleaved", 30, 9, 21, True),
    "gated_global_states": ("elu", "global", None, True, (2, 1, 1), "interleaved", 49, 10, 4, True),
}


def shared(head, many, few, order):
    """The head of `few` heads that a head of `many` uses."""
    return head % few if order == "tiled" else head // (many // few)


def attention(case, tensors):
    """The outputs [T, H_o, V], and the pairs of S and z after the last token, by state."""
    feature_map, normaliser, chunk, gate, (query, key_heads, value_heads), order, length, key, value, _ = case
    phi, eps = MAPS[feature_map], {"none": 0.0, "global": 1e-6, "per_chunk": 1e-8}[normaliser]
    states = max(key_heads, value_heads)
    outputs = max(query, states)
    o, last = [], [None] * states
    for head in range(outputs):
        state = shared(head, outputs, states, order)
        a = phi(tensors["q"][:, shared(head, outputs, query, order)])
        c = phi(tensors["k"][:, shared(state, states, key_heads, order)])
        v = tensors["v"][:, shared(state, states, value_heads, order)]
        # With chunks, the sums of the finished ones and of the current one.
        (past, past_z), (s, z), count = tensors["past"][state], tensors["current"][state], case_count(case)
        has_past = case[-1]
        rows = []
        for t in range(length):
            if gate:
                decay = jnp.exp(tensors["g"][t, state])
                s, z = decay * s, decay * z
            s, z = s + jnp.outer(c[t], v[t]), z + c[t]
            read = a[t] @ s if normaliser == "none" else (a[t] @ s) / (a[t] @ z + eps)
            if normaliser == "per_chunk" and has_past:
                read = read + (a[t] @ past) / (a[t] @ past_z + eps)
            rows.append(SCALE * read)
            count += 1
            if normaliser == "per_chunk" and count == chunk:
                past, past_z, s, z, count, has_past = past + s, past_z + z, 0 * s, 0 * z, 0, True
        o.append(jnp.stack(rows))
        last[state] = ((past, past_z), (s, z))
    return jnp.stack(o, axis=1), last


SCALE = 0.5


def case_count(case):
    """The number of tokens that the initial state has begun a chunk with."""
    return 3 if case[1] == "per_chunk" and case[-1] else 0


def flat(case, past, current, count):
    """States in the library's layout."""
    parts = []
    for (s, z), (chunk_s, chunk_z) in zip(past, current):
        if case[1] == "none":
            parts += [chunk_s.ravel()]
        elif case[1] == "global":
            parts += [chunk_s.ravel(), chunk_z]
        else:
            parts += [s.ravel(), z, chunk_s.ravel(), chunk_z, np.array([count])]
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.float32)


def make(name, case):
    feature_map, normaliser, chunk, gate, heads, order, length, key, value, with_states = case
    random = np.random.default_rng(sum(name.encode()))
    single = lambda x: np.asarray(x, dtype=np.float32).astype(np.float64)
    query, key_heads, value_heads = heads
    states = max(key_heads, value_heads)
    tensors = {
        "q": single(random.standard_normal((length, query, key))),
        "k": single(random.standard_normal((length, key_heads, key))),
        "v": single(random.standard_normal((length, value_heads, value))),
        "g": single(-random.random((length, states))) if gate else np.zeros((length, 0)),
    }
    output = single(random.standard_normal((length, max(query, states), value)))
    # Sums of phi(k) are positive.
    sums = lambda size, times: [
        (times * single(random.random((key, value))), times * single(random.random(key))) for _ in range(size)
    ]
    times = 1 if with_states else 0
    tensors["past"], tensors["current"] = sums(states, times), sums(states, times)
    of_past, of_current = sums(states, times), sums(states, times)

    def loss(tensors):
        o, last = attention(case, tensors)
        total = jnp.sum(o * output)
        for (past, current), of_past_, of_current_ in zip(last, of_past, of_current):
            for x, gradient in [(past, of_past_), (current, of_current_)]:
                if normaliser == "per_chunk" or x is current:
                    total += jnp.sum(x[0] * gradient[0])
                    total += jnp.sum(x[1] * gradient[1]) if normaliser != "none" else 0
        return total

    gradients = jax.jit(jax.grad(loss))(tensors)
    count = case_count(case)
    file = {**{name: tensors[name][None] for name in ["q", "k", "v"]}, "output": output[None]}
    file.update({"d" + name: gradients[name][None] for name in ["q", "k", "v"]})
    if gate:
        file.update({"g": tensors["g"][None], "dg": gradients["g"][None]})
    file = {name: np.asarray(x, dtype=np.float32) for name, x in file.items()}
    if with_states:
        file["initial"] = flat(case, tensors["past"], tensors["current"], count)
        file["last"] = flat(case, of_past, of_current, 0)
        file["dinitial"] = flat(case, gradients["past"], gradients["current"], 0)
    config = {"feature_map": feature_map, "normaliser": normaliser, "chunk": chunk, "gate": gate, "order": order}
    return file, {"config": json.dumps(config | {"scale": SCALE})}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        tensors, metadata = make(name, case)
        save_file(tensors, folder / f"{name}.safetensors", metadata)
        print(name, {name: x.shape for name, x in tensors.items() if name.startswith("d")})
