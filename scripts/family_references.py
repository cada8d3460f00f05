"""The reference implementations of the family behind one call, from the inputs of a case to token-major results.

fla's `naive.py` files are loaded by their paths, because the package itself needs triton. The files with its gates need
triton as well, so only the definitions of the functions are taken from them.
"""

import ast
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

FLA = Path(os.environ["FAMILY_FLA"])
TRANSFORMERS = f"transformers {version('transformers')}"


def naive(op):
    spec = importlib.util.spec_from_file_location(f"naive_{op}", FLA / "fla/ops" / op / "naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gate_function(op, name):
    path = FLA / "fla/ops" / op / "gate.py"
    tree = ast.parse(path.read_text())
    tree.body = [part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == name]
    names = {"torch": torch, "F": torch.nn.functional}
    exec(compile(tree, str(path), "exec"), names)
    return names[name]


GDN_GATE = gate_function("gated_delta_rule", "naive_gdn_gate")
KDA_GATE = gate_function("kda", "naive_kda_gate")
KDA_LOWERBOUND_GATE = gate_function("kda", "naive_kda_lowerbound_gate")


def flat(bias):
    return None if bias is None else bias.flatten()


# The arguments are the gate as it is stored, a_log, dt_bias and the lower bound.
GATES = {
    ("scalar", "log"): lambda g, *_: g,
    ("scalar", "linear"): lambda g, *_: g.log(),
    ("scalar", "softplus"): lambda g, a_log, bias, _: GDN_GATE(g, a_log, bias),
    ("key", "log"): lambda g, *_: g,
    ("key", "linear"): lambda g, *_: g.log(),
    ("key", "softplus"): lambda g, a_log, bias, _: KDA_GATE(g, a_log, flat(bias)),
    ("key", "bounded"): lambda g, a_log, bias, lower: KDA_LOWERBOUND_GATE(g, a_log, flat(bias), lower),
}
BETA_MAPS = {"given": lambda b: b, "sigmoid": torch.sigmoid, "twice_sigmoid": lambda b: 2 * torch.sigmoid(b)}
FEATURE_MAPS = {
    "identity": lambda x: x,
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": lambda x: torch.nn.functional.relu(x) + 1e-6,
}


def repeat(x, heads, order, axis):
    """Repeats the heads of x: each of them next to itself (interleaved), or all of them one after another (tiled)."""
    times = heads // x.shape[axis]
    if order == "interleaved":
        return x.repeat_interleave(times, axis)
    return x.tile(*(times if i == axis else 1 for i in range(x.ndim)))


def heads_first(*tensors):
    return [x.transpose(1, 2).contiguous() for x in tensors]


class Reference:
    """A function that `source` names. A call returns o [B, T, H, V], the final state or None, and z or None.

    `scaled` says whether the function takes the scale as an argument; otherwise it uses K^-1/2.
    """

    def __init__(self, source, call, scaled=False):
        self.source, self.call, self.scaled = source, call, scaled

    def __call__(self, x):
        return (*self.call(x), None, None)[:3]


def transformers(function):
    def call(x):
        return function(
            x.q,
            x.k,
            x.v,
            g=x.g,
            beta=x.beta,
            initial_state=x.initial_state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=x.qk_norm,
        )

    return Reference(f"{TRANSFORMERS} {function.__name__}", call)


def fla(op, name, call, scaled=False):
    function = getattr(naive(op), name)
    return Reference(f"fla-core {FLA.name} fla/ops/{op}/naive.py {name}", lambda x: call(function, x), scaled)


def linear_attn(function, x):
    # With the normaliser the state is a pair, and z has an axis of length 1 for the tokens.
    initial = x.initial_state
    if x.initial_z is not None:
        initial = (initial, x.initial_z[:, None])
    o, state = function(x.q, x.k, x.v, x.scale, initial, True, x.normalise)
    return (o, state[0], state[1][:, 0]) if x.normalise else (o, state)


def retention(function, x):
    o = function(*heads_first(x.q, x.k, x.v))
    return (o.transpose(1, 2),)


def delta_recurrence(function, x):
    o, state = function(*heads_first(x.q, x.k, x.v, x.beta), x.initial_state, True)
    return o.transpose(1, 2), state


def delta_chunkwise(function, x):
    o, state = function(*heads_first(x.q, x.k, x.v, x.beta))
    return o.transpose(1, 2), state


def by_name(function, x, **more):
    return function(x.q, x.k, x.v, **more, initial_state=x.initial_state, output_final_state=True)


QWEN_CHUNK = transformers(qwen.torch_chunk_gated_delta_rule)
QWEN_RECURRENT = transformers(qwen.torch_recurrent_gated_delta_rule)
KIMI_CHUNK = transformers(kimi.chunk_kimi_delta_attention)
KIMI_RECURRENT = transformers(kimi.recurrent_kimi_delta_attention)
LINEAR = fla("linear_attn", "naive_recurrent_linear_attn", linear_attn, True)
LINEAR_CHUNK = fla(
    "linear_attn", "naive_chunk_linear_attn", lambda f, x: (f(x.q, x.k, x.v, x.scale, x.normalise),), True
)
SIMPLE_GLA = fla("simple_gla", "naive_recurrent_simple_gla", lambda f, x: by_name(f, x, g=x.g, scale=x.scale), True)
SIMPLE_GLA_CHUNK = fla("simple_gla", "naive_chunk_simple_gla", lambda f, x: by_name(f, x, g=x.g, scale=x.scale), True)
GLA = fla("gla", "naive_recurrent_gla", lambda f, x: by_name(f, x, gk=x.g))
RETENTION = fla("retention", "naive_retention", retention)
DELTA = fla("delta_rule", "delta_rule_recurrence", delta_recurrence)
DELTA_CHUNK = fla("delta_rule", "delta_rule_chunkwise", delta_chunkwise)
# These two functions take g and beta in opposite orders, so both arguments are passed by name.
GATED_DELTA = fla(
    "gated_delta_rule",
    "naive_recurrent_gated_delta_rule",
    lambda f, x: by_name(f, x, g=x.g, beta=x.beta, scale=x.scale),
    True,
)
GATED_DELTA_CHUNK = fla(
    "gated_delta_rule",
    "naive_chunk_gated_delta_rule",
    lambda f, x: by_name(f, x, g=x.g, beta=x.beta, scale=x.scale),
    True,
)
KDA = fla("kda", "naive_recurrent_kda", lambda f, x: by_name(f, x, g=x.g, beta=x.beta, scale=x.scale), True)
KDA_CHUNK = fla("kda", "naive_chunk_kda", lambda f, x: by_name(f, x, g=x.g, beta=x.beta, scale=x.scale), True)
