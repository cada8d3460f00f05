"""The node test cases of LinearAttention and CausalConvWithState in the ONNX package, as golden files.

The package's own case generators draw the inputs and run its reference implementation.
"""

import importlib
from importlib.metadata import version

import numpy as np
import onnx
from onnx.backend.test.case import node as node_cases

import family_recurrence


def node_tests(module, prefix):
    """The cases of one operator: name, attributes with the defaults filled in, names of inputs and outputs, tensors."""
    importlib.import_module(f"onnx.backend.test.case.node.{module}")
    for case in node_cases._NodeTestCases:
        if not case.name.startswith(prefix) or "_expanded" in case.name:
            continue
        (node,) = case.model.graph.node
        (opset,) = case.model.opset_import
        schema = onnx.defs.get_schema(node.op_type, opset.version)
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {}
        for name, attribute in schema.attributes.items():
            value = given.get(name)
            if value is None:
                value = onnx.helper.get_attribute_value(attribute.default_value)
            attributes[name] = value.decode() if isinstance(value, bytes) else value
        ((inputs, outputs),) = case.data_sets
        tensors = dict(zip(filter(None, node.input), inputs, strict=True))
        tensors |= dict(zip(node.output, outputs, strict=True))
        yield case.name.removeprefix(prefix), attributes, list(node.input), list(node.output), tensors


def attention(attributes, x):
    """The outputs of a LinearAttention case by the f64 recurrence."""
    query_heads, heads = attributes["q_num_heads"], attributes["kv_num_heads"]

    def unpack(name, heads):
        return x[name].reshape(*x[name].shape[:2], heads, -1)

    tensors = {"q": unpack("query", query_heads), "k": unpack("key", heads), "v": unpack("value", heads)}
    gate = "none"
    if "decay" in x:
        gate = "scalar" if x["decay"].shape[2] == heads else "key"
        tensors["g"] = x["decay"] if gate == "scalar" else unpack("decay", heads)
    if "beta" in x:
        tensors["beta"] = np.broadcast_to(x["beta"], (*x["beta"].shape[:2], heads))
    if "past_state" in x:
        tensors["initial_state"] = x["past_state"]
    update = {"linear": "linear", "gated": "linear", "delta": "delta", "gated_delta": "delta"}[
        attributes["update_rule"]
    ]
    config = {
        "update": update,
        "gate": gate,
        "gate_map": "log",
        "beta_map": "given",
        "feature_map": "identity",
        "normaliser": "none",
        "scale": attributes["scale"] or tensors["k"].shape[-1] ** -0.5,
        "qk_norm_eps": None,
        "head_order": "interleaved",
    }
    o, state = family_recurrence.run(config, tensors)
    return o.reshape(*o.shape[:2], -1), state


OPERATORS = {
    "onnx_linear_attention": ("linear_attention", "test_linear_attention_", attention, 14),
    "onnx_causal_conv": ("causal_conv_with_state", "test_causal_conv_with_state_", family_recurrence.causal_conv, 13),
}


def errors(kind, case, tensors):
    """The norm errors of a case's outputs."""
    x = {name: tensors[f"{case['name']}/{name}"] for name in filter(None, case["inputs"])}
    want = OPERATORS[kind][2](case["attributes"], x)
    found = {}
    for name, tensor in zip(case["outputs"], want, strict=True):
        got = tensors[f"{case['name']}/{name}"]
        # The state of a kernel with one column is empty.
        found[name] = family_recurrence.norm_error(got, tensor) if got.size else 0.0
    return found


def files(tolerance):
    """The name, the configuration and the tensors of each of the two files."""
    for kind, (module, prefix, _, count) in OPERATORS.items():
        cases, stored = [], {}
        for name, attributes, inputs, outputs, tensors in node_tests(module, prefix):
            case = {"name": name, "attributes": attributes, "inputs": inputs, "outputs": outputs}
            # Some outputs are views, and safetensors stores contiguous arrays only.
            stored |= {f"{name}/{key}": np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
            half = tensors[outputs[0]].dtype == np.float16
            # Rounding to f16 changes a number by at most 2^-11 of it.
            case["tolerance"] = tolerance(f"{kind} {name}", errors(kind, case, stored), 2.0**-11 if half else 1e-6)
            cases.append(case)
        if len(cases) != count:
            raise SystemExit(f"{kind}: {len(cases)} cases, not {count}")
        config = {
            "kind": kind,
            "source": f"onnx {version('onnx')} onnx.backend.test.case.node.{module}",
            "cases": cases,
            "note": "",
        }
        yield kind, config, stored
