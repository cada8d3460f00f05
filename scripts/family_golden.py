"""Makes the golden files of the family with its reference implementations. `scripts/family-golden` runs it."""

import json
import math
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.numpy import save_file

import family_cases
import family_onnx
import family_recurrence
from family_references import BETA_MAPS, FEATURE_MAPS, GATES, repeat


# Each of these values must occur in at least one file.
VALUES = {
    "update": {"linear", "delta"},
    "gate": {"none", "scalar", "key"},
    "gate_map": {"log", "linear", "softplus", "bounded"},
    "beta_map": {"given", "sigmoid", "twice_sigmoid"},
    "feature_map": {"identity", "elu", "relu"},
    "normaliser": {"none", "global"},
    "qk_norm_eps": {None, 1e-6},
    "head_order": {"interleaved", "tiled"},
}


def tolerance(label, errors, bound):
    """Four times the reference's own error against f64, at least 1e-6. Ends the program if that error exceeds the bound."""
    worst = max(errors.values())
    print(f"{label:52} " + "  ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    if not worst <= bound:
        raise SystemExit(f"{label}: the reference deviates from the recurrence by {worst:.1e}, more than {bound:.1e}")
    wanted = max(4 * worst, 1e-6)
    # The result is rounded up to two digits, so that the roundings of other machines seldom change the text.
    unit = 10.0 ** (math.floor(math.log10(wanted)) - 1)
    return float(f"{math.ceil(wanted / unit) * unit:.1e}")


def draw(case, random):
    """The raw tensors of a case, as they are stored."""
    b, t, h = case.batch, case.length, max(case.key_heads, case.value_heads)
    normal = lambda *shape: random.standard_normal(shape)
    x = {
        "q": normal(b, t, case.query_heads, case.key),
        "k": normal(b, t, case.key_heads, case.key),
        "v": normal(b, t, case.value_heads, case.value),
    }
    if case.hard:
        x["v"] = random.uniform(-0.3, 5.0, x["v"].shape)
    if case.correlated:
        x["k"] = 0.3 * x["k"] + normal(b, 1, case.key_heads, case.key)
    if case.update == "delta" and case.qk_norm_eps is None:
        x["k"] /= np.linalg.norm(x["k"], axis=-1, keepdims=True)
    if case.qk_norm_eps is not None:
        # Some rows are so small that the eps of the norm matters.
        x["q"][:, :: case.length // 3 + 1] *= 1e-3
        x["k"][:, :: case.length // 2 + 1] *= 1e-3
    if case.feature_map == "relu":
        # The map replaces these rows by its eps, which is so small that the normaliser's eps matters.
        x["q"][:, :3], x["k"][:, :2] = -abs(x["q"][:, :3]), -abs(x["k"][:, :2])
    elif case.normaliser == "global" and case.feature_map == "identity":
        # Positive q and k keep every denominator away from zero.
        x["q"], x["k"] = abs(x["q"]) + 0.1, abs(x["k"]) + 0.1

    gates = (b, t, h) if case.gate == "scalar" else (b, t, h, case.key)
    if case.gate != "none":
        if case.retention:
            x["g"] = np.broadcast_to(np.log1p(-(2.0 ** (-5.0 - np.arange(h)))), gates)
        elif case.gate_map == "log":
            x["g"] = random.uniform(-20.0, -1e-4, gates) if case.hard else -random.uniform(0.0, 0.3, gates)
        elif case.gate_map == "linear":
            x["g"] = random.uniform(0.8, 1.0, gates)
            # A factor of 0 resets the state.
            x["g"][:, case.length // 2] = 0.0
        else:
            x["g"] = normal(*gates) * 2.0 - 1.0
            # In f32 the softplus of a number above 20 is the number itself.
            x["g"][:, :: case.length // 2 + 1, -1:] = 24.0
    if case.a_log:
        x["a_log"] = np.log(random.uniform(0.05, 2.0, h))
    if case.dt_bias:
        x["dt_bias"] = normal(*gates[2:]) - 1.0
    if case.update == "delta":
        low, high = (1.8, 2.0) if case.correlated else (0.0, 1.0)
        x["beta"] = random.uniform(low, high, (b, t, h)) if case.beta_map == "given" else 2.0 * normal(b, t, h)
    if case.state:
        x["initial_state"] = 0.5 * normal(b, h, case.key, case.value)
        if case.normaliser == "global":
            x["initial_state"] = abs(x["initial_state"])
            x["initial_z"] = random.uniform(1.0, 2.0, (b, h, case.key))
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in x.items()}


def fed(case, raw):
    """The arguments of the reference: maps are applied, and heads are repeated if the reference cannot do it.

    Functions of torch and fla do all of this, so that the recurrence checks them too.
    """
    x = {name: torch.from_numpy(tensor) for name, tensor in raw.items()}
    for name in "qk":
        x[name] = FEATURE_MAPS[case.feature_map](x[name])
    if case.update == "delta":
        x["beta"] = BETA_MAPS[case.beta_map](x["beta"])
    if case.gate != "none":
        gate = GATES[case.gate, case.gate_map]
        x["g"] = gate(x["g"], x.pop("a_log", None), x.pop("dt_bias", None), case.gate_lower)
    if case.repeat:
        state_heads = max(case.key_heads, case.value_heads)
        outputs = max(case.query_heads, state_heads)
        for name, heads in (("k", state_heads), ("v", state_heads), ("q", outputs)):
            x[name] = repeat(x[name], heads, case.head_order, 2)
        for name, axis in (("k", 2), ("v", 2), ("g", 2), ("beta", 2), ("initial_state", 1)):
            if name in x:
                x[name] = repeat(x[name], outputs, case.head_order, axis)
    x |= {name: None for name in ("g", "beta", "initial_state", "initial_z") if name not in x}
    scale = case.scale if case.scale is not None else case.key**-0.5
    options = {"normalise": case.normaliser == "global", "qk_norm": case.qk_norm_eps is not None}
    return SimpleNamespace(**x, scale=scale, **options)


def make(case):
    """The configuration and the tensors of a case."""
    fields = "update gate gate_map gate_lower beta_map feature_map normaliser qk_norm_eps head_order".split()
    config = {"kind": "family", "source": case.reference.source, **{name: getattr(case, name) for name in fields}}
    # fla divides by scale q . z + 1e-10. The scale cancels, except that it divides the eps.
    scale = case.scale if case.scale is not None else case.key**-0.5
    normalised = case.normaliser == "global"
    config |= {"scale": 1.0 if normalised else scale, "eps": 1e-10 / scale if normalised else None, "note": case.note}
    if case.scale is not None and not case.reference.scaled:
        raise SystemExit(f"{case.name}: the reference takes no scale")

    raw = draw(case, np.random.default_rng(zlib.crc32(case.name.encode())))
    x = fed(case, raw)
    o, state, z = case.reference(x)
    if state is None:
        _, state, z = case.state_from(x)
        config["source"] += f"; final_state: {case.state_from.source}"
    heads = max(case.key_heads, case.value_heads)
    if state.shape[1] != heads:
        step = state.shape[1] // heads
        state = state[:, ::step] if case.head_order == "interleaved" else state[:, :heads]
    results = {"o": o, "final_state": state} | ({"final_z": z} if normalised else {})
    tensors = raw | {name: np.ascontiguousarray(result.numpy(), np.float32) for name, result in results.items()}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise SystemExit(f"{case.name}: not all numbers are finite")
    config["tolerance"] = tolerance(case.name, family_recurrence.errors(config, tensors), case.bound)
    return config, tensors


def verify(folder):
    """Reads every file again and checks it.

    Its results must be within its tolerance, and each wrong reading must exceed the tolerance of some file by far.
    """
    seen, values = {}, {field: set() for field in VALUES}
    for path in sorted(folder.glob("*.safetensors")):
        config, tensors = family_recurrence.read(path)
        if config["kind"] == "family":
            for field in values:
                values[field].add(config[field])
            if max(family_recurrence.errors(config, tensors).values()) > config["tolerance"]:
                raise SystemExit(f"{path.name}: the error is above the tolerance")
            for label, wrong, read in family_recurrence.readings(config, tensors):
                cost = max(family_recurrence.errors(wrong, read).values()) / config["tolerance"]
                seen[label] = max(seen.get(label, (0.0, "")), (cost, path.stem))
            continue
        for case in config["cases"]:
            if max(family_onnx.errors(config["kind"], case, tensors).values()) > case["tolerance"]:
                raise SystemExit(f"{path.name}: the error of {case['name']} is above the tolerance")
    if values != VALUES:
        raise SystemExit(f"the files have the values {values}, not {VALUES}")
    print("\nErrors of wrong readings, in units of the tolerance of the file in which they are largest")
    for label, (cost, name) in sorted(seen.items()):
        print(f"{label:44} {cost:9.1e}  {name}")
        if not cost > 10:
            raise SystemExit(f"no file detects the wrong reading {label}")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    files = [(case.name, *make(case)) for case in family_cases.CASES]
    files += family_onnx.files(tolerance)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for name, config, tensors in files:
        save_file(tensors, folder / f"{name}.safetensors", {"config": json.dumps(config, sort_keys=True)})
    verify(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"\n{len(files)} files, {size} bytes")


main()
