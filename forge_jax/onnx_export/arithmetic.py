"""Primitives that work on each number by itself."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from forge_jax.onnx_export.equations import TRUTH, Rule, dtype_of, result, sizes_of
from forge_jax.onnx_export.graph import Graph, element_type


def as_type(graph: Graph, x: str, dtype: object) -> str:
    """x in another dtype."""
    return graph.emit("Cast", [x], {"to": element_type(dtype)})


def plain(kind: str) -> Rule:
    """A node of one kind with the same inputs."""
    return lambda graph, eqn, *inputs: graph.emit(kind, inputs)


def bits(logical: str, bitwise: str) -> Rule:
    """One kind of node for truth values, another for integers."""
    return lambda graph, eqn, *inputs: graph.emit(logical if dtype_of(eqn) == TRUTH else bitwise, inputs)


def remainder(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
    """The remainder with the sign of `a`, as in C."""
    return graph.emit("Mod", [a, b], {"fmod": 1})


def of_one(graph: Graph, eqn: JaxprEqn) -> Callable[[float], str]:
    """Makes constants in the dtype of the first input."""
    return lambda value: graph.constant(value, dtype_of(eqn))


def log1p(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """log(1 + x), exact for small x: log(u) x / (u - 1) with u = 1 + x rounded (Goldberg 1991, theorem 4)."""
    number = of_one(graph, eqn)
    u = graph.emit("Add", [number(1), x])
    log = graph.emit("Log", [u])
    scaled = graph.emit("Div", [graph.emit("Mul", [log, x]), graph.emit("Sub", [u, number(1)])])
    scaled = graph.emit("Where", [graph.emit("Greater", [x, number(1)]), log, scaled])  # x may be infinite
    return graph.emit("Where", [graph.emit("Equal", [u, number(1)]), x, scaled])


def expm1(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """exp(x) - 1, exact for small x: 2 t / (1 - t) with t = tanh(x / 2)."""
    number = of_one(graph, eqn)
    t = graph.emit("Tanh", [graph.emit("Mul", [x, number(0.5)])])
    near = graph.emit("Div", [graph.emit("Mul", [t, number(2)]), graph.emit("Sub", [number(1), t])])
    far = graph.emit("Sub", [graph.emit("Exp", [x]), number(1)])
    return graph.emit("Where", [graph.emit("Greater", [x, number(1)]), far, near])


def erfc(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """1 - erf(x)."""
    return graph.emit("Sub", [of_one(graph, eqn)(1), graph.emit("Erf", [x])])


def reciprocal_root(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """1 / sqrt(x)."""
    return graph.emit("Reciprocal", [graph.emit("Sqrt", [x])])


def integer_power(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """x to a whole power, by multiplication."""
    power = eqn.params["y"]
    out, square, rest = None, x, abs(power)
    while rest:
        if rest & 1:
            out = square if out is None else graph.emit("Mul", [out, square])
        rest >>= 1
        square = graph.emit("Mul", [square, square]) if rest else square
    if out is None:
        raise ValueError("ONNX export: a power of 0 is not written")
    return out if power > 0 else graph.emit("Reciprocal", [out])


def square(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """x x."""
    return graph.emit("Mul", [x, x])


def rounded(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """To the nearest whole number, halves to the even one.

    Raises:
        ValueError: halves are rounded away from 0.
    """
    if int(eqn.params["rounding_method"]) != 1:
        raise ValueError("ONNX export: rounding halves away from 0 is not written")
    return graph.emit("Round", [x])


def convert(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """Another dtype."""
    new = eqn.params["new_dtype"]
    y = x if np.dtype(new) == dtype_of(eqn) else as_type(graph, x, new)
    if x in graph.root.zeros:
        graph.root.zeros.add(y)
    return y


def greater(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
    """a > b. Nothing is above infinity: so a number that only makes a step wait for another is found out."""
    y = graph.emit("Greater", [a, b])
    if known(graph, eqn, 1, b) == np.inf:
        graph.root.zeros.add(y)
    return y


def known(graph: Graph, eqn: JaxprEqn, which: int, name: str) -> float | None:
    """The number that an operand is all over, where that is known."""
    operand = eqn.invars[which]
    if isinstance(operand, Literal) and np.ndim(operand.val) == 0:
        return operand.val
    return 0 if name in graph.root.zeros else None


def computed(kind: str, neutral: int | None = None) -> Rule:
    """A sum or product. That of unsigned words, which onnxruntime does not have, is the lower half of a signed one.

    neutral: with this number it is the other operand.
    """

    def rule(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
        for which, other in ((1, a), (0, b)):
            number = known(graph, eqn, which, (a, b)[which])
            if number is not None and number == neutral and sizes_of(eqn, 1 - which) == result(eqn):
                return other
        if dtype_of(eqn) != np.uint32:
            return graph.emit(kind, [a, b])
        wide = graph.emit(kind, [as_type(graph, x, np.int64) for x in (a, b)])
        return as_type(graph, graph.emit("BitwiseAnd", [wide, graph.constant(0xFFFFFFFF, np.int64)]), np.uint32)

    return rule


def shifted(direction: str) -> Rule:
    """The bits of an unsigned number moved, zeros after them.

    Raises:
        ValueError: the number is signed.
    """

    def rule(graph: Graph, eqn: JaxprEqn, x: str, by: str) -> str:
        if dtype_of(eqn).kind != "u":
            raise ValueError(f"ONNX export: moving the bits of {dtype_of(eqn)} is not written")
        return graph.emit("BitShift", [x, by], {"direction": direction})

    return rule


def either(graph: Graph, which: str, then: str, otherwise: str, kind: np.dtype) -> str:
    """One or the other for each number, as a truth value says."""
    if kind != TRUTH:
        return graph.emit("Where", [which, then, otherwise])
    # onnxruntime has no Where of truth values
    then, otherwise = graph.emit("And", [which, then]), graph.emit("And", [graph.emit("Not", [which]), otherwise])
    return graph.emit("Or", [then, otherwise])


def select(graph: Graph, eqn: JaxprEqn, which: str, *cases: str) -> str:
    """Case 0 or 1, as a truth value says.

    Raises:
        ValueError: there are more cases.
    """
    if len(cases) != 2 or dtype_of(eqn) != TRUTH:
        raise ValueError(f"ONNX export: a choice among {len(cases)} cases by {dtype_of(eqn)} is not written")
    return either(graph, which, cases[1], cases[0], dtype_of(eqn, 1))


def clamp(graph: Graph, eqn: JaxprEqn, low: str, x: str, high: str) -> str:
    """x between two bounds."""
    return graph.emit("Min", [graph.emit("Max", [x, low]), high])


def finite(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """Whether x is neither infinite nor NaN."""
    return graph.emit("Not", [graph.emit("Or", [graph.emit("IsInf", [x]), graph.emit("IsNaN", [x])])])


def unequal(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
    """a != b; x != x asks for NaN."""
    if a == b and jnp.issubdtype(dtype_of(eqn), jnp.floating):
        return graph.emit("IsNaN", [a])
    return graph.emit("Not", [graph.emit("Equal", [a, b])])


def coarse(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """x rounded to the numbers of a smaller dtype.

    Raises:
        ValueError: to other numbers than bfloat16's.
    """
    exponent, mantissa = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
    if (exponent, mantissa) != (8, 7):
        raise ValueError(f"ONNX export: numbers of {exponent} exponent and {mantissa} mantissa bits are not written")
    return as_type(graph, as_type(graph, x, jnp.bfloat16), dtype_of(eqn))


SAME = {
    **{"div": "Div", "max": "Max", "min": "Min", "pow": "Pow"},
    **{"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "sin": "Sin", "cos": "Cos", "logistic": "Sigmoid"},
    **{"erf": "Erf", "floor": "Floor", "ceil": "Ceil", "sign": "Sign", "abs": "Abs", "neg": "Neg"},
    **{"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "ge": "GreaterOrEqual"},
    **{"copy": "Identity", "stop_gradient": "Identity"},
}
RULES: Mapping[str, Rule] = {
    **{name: plain(kind) for name, kind in SAME.items()},
    "and": bits("And", "BitwiseAnd"),
    "or": bits("Or", "BitwiseOr"),
    "xor": bits("Xor", "BitwiseXor"),
    "not": bits("Not", "BitwiseNot"),
    "add": computed("Add", 0),
    "sub": computed("Sub"),
    "mul": computed("Mul", 1),
    "shift_left": shifted("LEFT"),
    "shift_right_logical": shifted("RIGHT"),
    "gt": greater,
    "ne": unequal,
    "rem": remainder,
    "rsqrt": reciprocal_root,
    "integer_pow": integer_power,
    "square": square,
    "log1p": log1p,
    "expm1": expm1,
    "erfc": erfc,
    "round": rounded,
    "convert_element_type": convert,
    "select_n": select,
    "clamp": clamp,
    "is_finite": finite,
    "reduce_precision": coarse,
}
