"""The recurrence of the linear-attention family in f64, one token at a time, on the tensors of a golden file.

It shares no code with the reference implementations: `scripts/family-golden` compares their results with it, and so
measures how accurate they are. `tests/golden/family/README.md` has the formulas and the format.
"""

import json

import numpy as np
from safetensors import safe_open


def read(path):
    """The configuration and the tensors of a golden file."""
    with safe_open(path, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}


def norm_error(got, want):
    """The norm of the difference, relative to the norm of `want`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shapes {got.shape} and {want.shape} differ")
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300))


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def softplus(x):
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def feature_map(name, x):
    maps = {
        "identity": lambda x: x,
        "elu": lambda x: np.where(x > 0, 1 + x, np.exp(np.minimum(x, 0))),
        "relu": lambda x: np.maximum(x, 0) + 1e-6,
    }
    return maps[name](x)


def log_gate(config, g, a_log=None, dt_bias=None):
    """The logarithm of the factor of the state, computed from the stored gate [B, T, H] or [B, T, H, K]."""
    name = config["gate_map"]
    if name == "log":
        return g
    if name == "linear":
        with np.errstate(divide="ignore"):
            return np.log(g)
    rate = np.ones(g.shape[2]) if a_log is None else np.exp(a_log)
    rate = rate if config["gate"] == "scalar" else rate[:, None]
    x = g if dt_bias is None else g + dt_bias
    if name == "softplus":
        return -rate * softplus(x)
    return {"bounded": config["gate_lower"]}[name] * sigmoid(rate * x)


def map_beta(config, beta):
    maps = {"given": lambda b: b, "sigmoid": sigmoid, "twice_sigmoid": lambda b: 2 * sigmoid(b)}
    return maps[config["beta_map"]](beta)


def spread(x, heads, order, axis=2):
    """Repeats the heads of x so that there are `heads` of them."""
    have = x.shape[axis]
    if heads % have:
        raise ValueError(f"{heads} heads are not a multiple of {have}")
    index = np.arange(heads)
    index = {"interleaved": index // (heads // have), "tiled": index % have}[order]
    return np.take(x, index, axis)


def run(config, tensors):
    """The results for a file's inputs: o [B, T, Hout, V], the state [B, H, K, V] and, with a normaliser, z [B, H, K]."""
    x = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    order, delta = config["head_order"], {"linear": False, "delta": True}[config["update"]]
    q, k, v = (x[name] for name in "qkv")
    batch, length, _, key = k.shape
    heads = max(k.shape[2], v.shape[2])
    outputs = max(q.shape[2], heads)

    q, k = (feature_map(config["feature_map"], rows) for rows in (q, k))
    if config["qk_norm_eps"] is not None:
        q, k = (rows / np.sqrt((rows * rows).sum(-1, keepdims=True) + config["qk_norm_eps"]) for rows in (q, k))
    q, k, v = spread(q, outputs, order), spread(k, heads, order), spread(v, heads, order)

    factor = np.ones((batch, length, heads, 1))
    if config["gate"] != "none":
        factor = np.exp(log_gate(config, x["g"], x.get("a_log"), x.get("dt_bias")))
        factor = {"scalar": lambda a: a[..., None], "key": lambda a: a}[config["gate"]](factor)
    beta = map_beta(config, x["beta"])[..., None] if delta else None

    state = x.get("initial_state", np.zeros((batch, heads, key, v.shape[-1])))
    z = x.get("initial_z", np.zeros((batch, heads, key)))
    o = np.zeros((batch, length, outputs, v.shape[-1]))
    for t in range(length):
        state = factor[:, t, :, :, None] * state
        z = factor[:, t] * z + k[:, t]
        u = v[:, t]
        if delta:
            u = beta[:, t] * (u - np.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + k[:, t, :, :, None] * u[:, :, None, :]
        o[:, t] = config["scale"] * np.einsum("bhkv,bhk->bhv", spread(state, outputs, order, 1), q[:, t])
        if config["normaliser"] == "global":
            o[:, t] /= np.einsum("bhk,bhk->bh", spread(z, outputs, order, 1), q[:, t])[..., None] + config["eps"]
    return (o, state, z) if config["normaliser"] == "global" else (o, state)


def errors(config, tensors):
    """The norm errors of a file's results."""
    names = ("o", "final_state", "final_z")
    return {name: norm_error(tensors[name], want) for name, want in zip(names, run(config, tensors))}


def readings(config, tensors):
    """Wrong readings of a file, in which an input is ignored or one convention is mistaken for another.

    Each of them is a label, and the configuration and the tensors as they are misread.
    """
    other = {
        "update": {"linear": None, "delta": "linear"},
        "head_order": {"interleaved": "tiled", "tiled": "interleaved"},
        "gate": {"scalar": "none", "key": "none"},
        "beta_map": {"sigmoid": "given", "twice_sigmoid": "sigmoid"},
        "feature_map": {"elu": "identity", "relu": "identity"},
        "normaliser": {"global": "none"},
        "gate_lower": {-5.0: -4.0},
        "qk_norm_eps": {1e-6: 1e-5},
    }
    for field, values in other.items():
        wrong = values.get(config[field])
        if wrong is not None:
            yield f"{field}: {wrong} for {config[field]}", {**config, field: wrong}, tensors
    yield "scale: twice as much", {**config, "scale": 2 * config["scale"]}, tensors
    if config["qk_norm_eps"] is not None:
        yield "qk_norm_eps: no norm", {**config, "qk_norm_eps": None}, tensors
    if config["normaliser"] == "global":
        yield "eps: 0", {**config, "eps": 0.0}, tensors
    for name in ("initial_state", "initial_z", "a_log", "dt_bias"):
        if name in tensors:
            yield f"{name}: ignored", config, {n: t for n, t in tensors.items() if n != name}


def causal_conv(attributes, x):
    """ONNX's CausalConvWithState in f64: the output [B, C, L] and the last columns [B, C, k - 1]."""
    x = {name: np.asarray(tensor, np.float64) for name, tensor in x.items()}
    batch, channels, length = x["input"].shape
    width = x["weight"].shape[2]
    past = x.get("past_state", np.zeros((batch, channels, width - 1)))
    padded = np.concatenate([past, x["input"]], 2)
    output = np.zeros((batch, channels, length))
    for tap in range(width):
        output += padded[:, :, tap : tap + length] * x["weight"][:, 0, tap, None]
    output += x.get("bias", np.zeros(channels))[:, None]
    if attributes["activation"] != "none":
        output = output * sigmoid(output)
    return output, padded[:, :, length:]
