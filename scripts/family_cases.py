"""The cases of the golden files: which reference implementation runs on which shapes, maps and distributions."""

from dataclasses import dataclass

import family_references as reference
from family_references import Reference


@dataclass
class Case:
    name: str
    reference: Reference
    # The number of tokens; the numbers of query, key and value heads; the sizes of keys and of values.
    length: int
    heads: tuple[int, int, int]
    sizes: tuple[int, int]
    batch: int = 1
    update: str = "linear"
    gate: str = "none"
    gate_map: str = "log"
    gate_lower: float | None = None
    beta_map: str = "given"
    feature_map: str = "identity"
    normaliser: str = "none"
    # None stands for K^-1/2, which some references always use.
    scale: float | None = None
    qk_norm_eps: float | None = None
    head_order: str = "interleaved"
    # Which of the optional tensors the case has.
    state: bool = False
    a_log: bool = False
    dt_bias: bool = False
    # The distributions. hard: g ~ U[-20, -1e-4] and v ~ U[-0.3, 5]; correlated: keys that nearly agree, and beta in
    # [1.8, 2]; retention: the decays of RetNet.
    hard: bool = False
    correlated: bool = False
    retention: bool = False
    # Whether heads are repeated before the call, because the reference cannot do it.
    repeat: bool = False
    # The reference that computes the final state, where the case's own reference does not return one.
    state_from: Reference | None = None
    # The largest norm error against f64 that the reference may have. It is larger for chunked references with a gate,
    # which subtract sums of g.
    bound: float = 1e-6
    note: str = ""

    def __post_init__(self):
        self.query_heads, self.key_heads, self.value_heads = self.heads
        self.key, self.value = self.sizes
        if self.gate != "none" and "chunk" in self.reference.source:
            self.bound = 1e-5


def scalar_delta(name, function, length, heads, sizes, **more):
    """A case of the gated delta rule."""
    return Case(name, function, length, heads, sizes, **({"update": "delta", "gate": "scalar"} | more))


def key_delta(name, function, length, heads, sizes, **more):
    """A case of Kimi Delta Attention."""
    return Case(name, function, length, heads, sizes, **({"update": "delta", "gate": "key"} | more))


# The maps and the norm of a whole layer of Qwen3-Next or Kimi Linear.
LAYER = {"gate_map": "softplus", "beta_map": "sigmoid", "a_log": True, "dt_bias": True, "qk_norm_eps": 1e-6}
NORM = {"qk_norm_eps": 1e-6}
STATE = {"state": True}
HARD = {"hard": True, "note": "g ~ U[-20, -1e-4], v ~ U[-0.3, 5]"}
BOUNDED = {"gate_map": "bounded", "gate_lower": -5.0, "dt_bias": True}
GLOBAL = {"normaliser": "global"}
CORRELATED = {
    "correlated": True,
    "note": "the keys of a head nearly agree and beta is in [1.8, 2]: roundings are amplified",
}

QWEN = [
    scalar_delta("tf_chunk_t1", reference.QWEN_CHUNK, 1, (2, 2, 2), (32, 8), batch=2, **NORM),
    scalar_delta("tf_chunk_t5_state", reference.QWEN_CHUNK, 5, (2, 2, 4), (16, 8), **NORM, **STATE),
    scalar_delta("tf_chunk_t64_state", reference.QWEN_CHUNK, 64, (1, 1, 1), (8, 5), **STATE),
    scalar_delta("tf_chunk_t70", reference.QWEN_CHUNK, 70, (1, 1, 2), (6, 3), **NORM),
    scalar_delta("tf_chunk_t70_layer", reference.QWEN_CHUNK, 70, (1, 1, 2), (6, 4), **LAYER, **STATE),
    scalar_delta(
        "tf_chunk_t70_twice",
        reference.QWEN_CHUNK,
        70,
        (1, 1, 1),
        (6, 8),
        **LAYER | {"beta_map": "twice_sigmoid"},
        note="beta up to 2, as OLMo-Hybrid has it",
    ),
    scalar_delta("tf_recurrent_t1_state", reference.QWEN_RECURRENT, 1, (1, 1, 2), (32, 16), **NORM, **STATE),
    scalar_delta("tf_recurrent_t5", reference.QWEN_RECURRENT, 5, (3, 3, 3), (10, 9), batch=2),
    scalar_delta("tf_recurrent_t64_state", reference.QWEN_RECURRENT, 64, (1, 1, 1), (8, 4), **STATE),
    scalar_delta("tf_recurrent_t70_hard", reference.QWEN_RECURRENT, 70, (1, 1, 2), (8, 4), **NORM, **HARD),
    scalar_delta(
        "tf_recurrent_t19_tiled",
        reference.QWEN_RECURRENT,
        19,
        (2, 2, 4),
        (8, 4),
        head_order="tiled",
        repeat=True,
        **LAYER,
        **STATE,
    ),
]

KIMI = [
    key_delta("kimi_chunk_t1", reference.KIMI_CHUNK, 1, (4, 4, 4), (16, 8), **NORM),
    key_delta("kimi_chunk_t5_state", reference.KIMI_CHUNK, 5, (2, 2, 2), (16, 12), **NORM, **STATE),
    key_delta("kimi_chunk_t64", reference.KIMI_CHUNK, 64, (1, 1, 1), (6, 4)),
    key_delta("kimi_chunk_t70_layer", reference.KIMI_CHUNK, 70, (2, 2, 2), (4, 3), **LAYER, **STATE),
    key_delta("kimi_recurrent_t1_layer", reference.KIMI_RECURRENT, 1, (2, 2, 2), (32, 8), **LAYER, **STATE),
    key_delta("kimi_recurrent_t5", reference.KIMI_RECURRENT, 5, (2, 2, 2), (9, 10), batch=2),
    key_delta("kimi_recurrent_t23_state", reference.KIMI_RECURRENT, 23, (1, 1, 1), (8, 4), **STATE),
    key_delta("kimi_recurrent_t70_hard", reference.KIMI_RECURRENT, 70, (1, 1, 1), (6, 4), **NORM, **HARD),
]

LINEAR = [
    Case("fla_linear_t21", reference.LINEAR, 21, (2, 2, 2), (8, 9), **STATE),
    Case("fla_linear_t5_elu", reference.LINEAR, 5, (1, 1, 1), (32, 32), scale=0.5, feature_map="elu"),
    Case(
        "fla_linear_global_t70_elu",
        reference.LINEAR,
        70,
        (1, 1, 1),
        (6, 6),
        **GLOBAL,
        **STATE,
        scale=1.0,
        feature_map="elu",
    ),
    Case(
        "fla_linear_global_t23_relu",
        reference.LINEAR,
        23,
        (2, 2, 2),
        (8, 8),
        **GLOBAL,
        feature_map="relu",
        note="the first rows of q and k are below 0, so that both eps count",
    ),
    Case("fla_linear_global_t1", reference.LINEAR, 1, (4, 4, 4), (8, 8), **GLOBAL, **STATE),
    Case(
        "fla_linear_chunk_t128_relu",
        reference.LINEAR_CHUNK,
        128,
        (1, 1, 1),
        (4, 4),
        feature_map="relu",
        state_from=reference.LINEAR,
    ),
    Case(
        "fla_linear_chunk_global_t64",
        reference.LINEAR_CHUNK,
        64,
        (1, 1, 1),
        (5, 7),
        **GLOBAL,
        state_from=reference.LINEAR,
    ),
]

GATED = [
    Case("fla_simple_gla_t37", reference.SIMPLE_GLA, 37, (2, 2, 2), (8, 6), gate="scalar", **STATE),
    Case("fla_simple_gla_t37_hard", reference.SIMPLE_GLA, 37, (2, 2, 2), (8, 4), gate="scalar", **HARD),
    Case("fla_simple_gla_chunk_t70", reference.SIMPLE_GLA_CHUNK, 70, (1, 1, 1), (8, 4), gate="scalar", **STATE),
    Case("fla_simple_gla_t19_gqa", reference.SIMPLE_GLA, 19, (4, 2, 2), (8, 6), gate="scalar", **STATE, repeat=True),
    Case(
        "fla_simple_gla_t21_ssd",
        reference.SIMPLE_GLA,
        21,
        (1, 1, 4),
        (16, 4),
        gate="scalar",
        gate_map="softplus",
        a_log=True,
        dt_bias=True,
        scale=1.0,
        repeat=True,
        **STATE,
        note="the heads and the scale of Mamba-2: one key head for all value heads",
    ),
    Case(
        "fla_simple_gla_t21_linear_gate",
        reference.SIMPLE_GLA,
        21,
        (2, 2, 2),
        (8, 8),
        gate="scalar",
        gate_map="linear",
        **STATE,
        note="the gate of token 10 is 0: the state is forgotten",
    ),
    Case("fla_gla_t21", reference.GLA, 21, (2, 2, 2), (8, 6), gate="key", **STATE),
    Case("fla_gla_t37_hard", reference.GLA, 37, (1, 1, 1), (12, 8), gate="key", **HARD),
    Case(
        "fla_gla_t21_linear_gate",
        reference.GLA,
        21,
        (2, 2, 2),
        (9, 7),
        gate="key",
        gate_map="linear",
        **STATE,
        note="the gate of token 10 is 0: the state is forgotten",
    ),
    Case(
        "fla_retention_t21",
        reference.RETENTION,
        21,
        (4, 4, 4),
        (4, 4),
        gate="scalar",
        retention=True,
        state_from=reference.SIMPLE_GLA,
        note="g is ln(1 - 2^(-5 - h)) at every token of head h",
    ),
]

DELTA = [
    Case("fla_delta_t37", reference.DELTA, 37, (2, 2, 2), (8, 5), update="delta", **STATE),
    Case("fla_delta_t37_correlated", reference.DELTA, 37, (1, 1, 1), (16, 4), update="delta", **CORRELATED),
    Case("fla_delta_chunk_t64", reference.DELTA_CHUNK, 64, (1, 1, 1), (8, 4), update="delta"),
    scalar_delta("fla_gated_delta_t37", reference.GATED_DELTA, 37, (1, 1, 1), (12, 8), **STATE, scale=0.3),
    scalar_delta(
        "fla_gated_delta_t23_gqa",
        reference.GATED_DELTA,
        23,
        (4, 2, 2),
        (8, 6),
        repeat=True,
        beta_map="sigmoid",
        **STATE,
    ),
    scalar_delta("fla_gated_delta_chunk_t70", reference.GATED_DELTA_CHUNK, 70, (1, 1, 1), (8, 4), **STATE),
    scalar_delta(
        "fla_gated_delta_chunk_t37_softplus",
        reference.GATED_DELTA_CHUNK,
        37,
        (2, 2, 2),
        (8, 4),
        gate_map="softplus",
        a_log=True,
        note="no dt_bias",
    ),
]

KDA = [
    key_delta(
        "fla_kda_t19_bounded", reference.KDA, 19, (2, 2, 4), (8, 5), **BOUNDED, a_log=True, beta_map="sigmoid", **STATE
    ),
    key_delta(
        "fla_kda_t9_bounded_no_rate", reference.KDA, 9, (2, 2, 2), (16, 12), **BOUNDED, note="no a_log: the rate is 1"
    ),
    key_delta("fla_kda_t21_hard", reference.KDA, 21, (1, 1, 2), (8, 4), **HARD),
    key_delta(
        "fla_kda_chunk_t64_softplus",
        reference.KDA_CHUNK,
        64,
        (1, 1, 2),
        (4, 4),
        gate_map="softplus",
        a_log=True,
        dt_bias=True,
        scale=1.0,
        **STATE,
    ),
]

CASES = QWEN + KIMI + LINEAR + GATED + DELTA + KDA
