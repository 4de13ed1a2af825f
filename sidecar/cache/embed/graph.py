"""A BERT as an ONNX graph: from token ids to a vector of length 1, with int8 weights.

Made here, and not by a converter, because all that converters need is larger than all of the rest.
"""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.bert import Bert
from sidecar.cache.embed.model import INPUT
from sidecar.cache.embed.weights import Tensor, Weights, WeightsError

OUTPUT = "vector"
_OPSET, _IR = 20, 9
"""The oldest in which Gelu is one operator, and what onnxruntime 1.20 reads."""
_ORT = "com.microsoft"
"""The domain of onnxruntime's own operators."""
_STEPS = 64
"""Of int8 weights to each side of zero. With all 127, processors without VNNI overflow 16 bits on the way and
give other vectors than those with it."""
_TABLE_STEPS = 127
"""The same for the table of tokens, which is not multiplied."""
_MIDDLE, _REACH = 128, 127
"""Of quantised activations: what stands for zero, and the most to each side of it."""
_LEAST = 1e-9
"""No activation's range is taken to be smaller: a token of nothing but zeros would be divided by it."""


def build(bert: Bert, weights: Weights, *, quantised: bool = True) -> bytes:
    """The graph, as a file has it: `input_ids` (int64, one text, with its special tokens) to `vector`.

    Texts go through it one by one. Ranges of quantised activations are those of all that is in a tensor, so
    that a text's vector would depend on its neighbours in a batch: cosine to itself alone 0.993 on average
    and 0.980 at worst in batches of 16. And on one core they are no gain: padding costs more than they save.
    Raises EmbedError.
    """
    try:
        return _Builder(bert, weights, quantised=quantised).model()
    except WeightsError as error:
        raise EmbedError(f"model.safetensors: {error}") from None


class _Builder:
    def __init__(self, bert: Bert, weights: Weights, *, quantised: bool) -> None:
        self._bert = bert
        self._weights = weights
        self._prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
        self._quantised = quantised
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._zeros: str | None = None

    def model(self) -> bytes:
        bert, helper, floats = self._bert, onnx.helper, onnx.TensorProto.FLOAT
        tokens = self._embeddings()
        for number in range(bert.layers):
            tokens = self._layer(f"encoder.layer.{number}.", tokens)
        if bert.pooling == "cls":
            pooled = self._op("Gather", tokens, self._constant(np.array(0)))
        else:
            pooled = self._op("ReduceMean", tokens, self._constant(np.array([0])), keepdims=0)
        length = self._op("ReduceL2", pooled, self._constant(np.array([0])), keepdims=1)
        self._nodes.append(helper.make_node("Div", [pooled, length], [OUTPUT]))
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [helper.make_tensor_value_info(INPUT, onnx.TensorProto.INT64, ["tokens"])],
            [helper.make_tensor_value_info(OUTPUT, floats, [bert.hidden])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_ORT, 1)]
        made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR).SerializeToString()
        return made

    def _embeddings(self) -> str:
        bert = self._bert
        words = self._tensor("embeddings.word_embeddings.weight", None, bert.hidden)
        if self._quantised:
            # By row: a token's numbers do not get coarser because another token's are large.
            table, steps = _quantise(words, 1, _TABLE_STEPS)
            found = self._op("Gather", self._constant(table), INPUT)
            found = self._op("Cast", found, to=onnx.TensorProto.FLOAT)
            found = self._op("Mul", found, self._op("Gather", self._constant(steps), INPUT))
        else:
            found = self._op("Gather", self._constant(words), INPUT)
        # All tokens are of the first kind, whose numbers can be added once and for all.
        kind = self._tensor("embeddings.token_type_embeddings.weight", None, bert.hidden)[0]
        places = (
            self._tensor("embeddings.position_embeddings.weight", None, bert.hidden)[: bert.tokens] + kind
        )
        if len(places) < bert.tokens:
            raise WeightsError(f"has positions for {len(places)} tokens, and config.json says more")
        zero = self._constant(np.array([0]))
        here = self._op("Slice", self._constant(places), zero, self._op("Shape", INPUT))
        return self._norm("embeddings.LayerNorm", self._op("Add", found, here))

    def _layer(self, at: str, tokens: str) -> str:
        mixed = self._dense(at + "attention.output.dense", self._attention(at + "attention.self.", tokens))
        tokens = self._norm(at + "attention.output.LayerNorm", self._op("Add", tokens, mixed))
        inner = self._op("Gelu", self._wide(at + "intermediate.dense", tokens, size=None))
        outer = self._wide(at + "output.dense", inner, inputs=None)
        return self._norm(at + "output.LayerNorm", self._op("Add", tokens, outer))

    def _attention(self, at: str, tokens: str) -> str:
        hidden, heads = self._bert.hidden, self._bert.heads
        scale = np.float32(1 / math.sqrt(hidden // heads))
        weights, biases = [], []
        for name, factor in (("query", scale), ("key", np.float32(1)), ("value", np.float32(1))):
            weights.append(self._tensor(at + name + ".weight", hidden, hidden) * factor)
            biases.append(self._tensor(at + name + ".bias", hidden) * factor)
        # One multiplication for the three.
        joined = self._multiply(tokens, np.concatenate(weights), np.concatenate(biases))
        parts = self._ops("Split", 3, joined, axis=-1, num_outputs=3)
        split = self._constant(np.array([0, heads, hidden // heads]))
        query, key, value = (self._op("Reshape", part, split) for part in parts)
        query = self._op("Transpose", query, perm=[1, 0, 2])
        key = self._op("Transpose", key, perm=[1, 2, 0])
        value = self._op("Transpose", value, perm=[1, 0, 2])
        shares = self._op("Softmax", self._op("MatMul", query, key), axis=-1)
        found = self._op("Transpose", self._op("MatMul", shares, value), perm=[1, 0, 2])
        return self._op("Reshape", found, self._constant(np.array([0, hidden])))

    def _dense(self, at: str, tokens: str) -> str:
        weight = self._tensor(at + ".weight", self._bert.hidden, self._bert.hidden)
        return self._multiply(tokens, weight, self._tensor(at + ".bias", self._bert.hidden))

    def _wide(self, at: str, tokens: str, size: int | None = 0, inputs: int | None = 0) -> str:
        """To or from a layer's inner size, which is whatever it is: `size` or `inputs` is None for it."""
        hidden = self._bert.hidden
        weight = self._tensor(
            at + ".weight", hidden if size == 0 else size, hidden if inputs == 0 else inputs
        )
        bias = self._tensor(at + ".bias", weight.shape[0])
        if not self._quantised:
            return self._multiply(tokens, weight, bias)
        # These two are where a few large activations would make all others coarse: with a range for each
        # token, and not one for all, cosines of pairs are off by 0.005 on average instead of 0.009. In the
        # other two it makes no difference.
        table, steps = _quantise(np.ascontiguousarray(weight.T), 0, _STEPS)
        largest = self._op("ReduceMax", self._op("Abs", tokens), self._constant(np.array([1])), keepdims=0)
        largest = self._op("Max", largest, self._constant(np.array(_LEAST, np.float32)))
        step = self._op("Mul", largest, self._constant(np.array(1 / _REACH, np.float32)))
        whole = self._op("QuantizeLinear", tokens, step, self._middles(), axis=0)
        given = (table, np.array(1, np.float32), steps.reshape(-1), np.array(_MIDDLE, np.uint8))
        constants = [self._constant(value) for value in given]
        product = self._op("MatMulIntegerToFloat", whole, *constants, domain=_ORT)
        product = self._op("Mul", product, self._op("Unsqueeze", step, self._constant(np.array([1]))))
        return self._op("Add", product, self._constant(bias))

    def _middles(self) -> str:
        """What stands for zero, for every token."""
        if self._zeros is None:
            middle = onnx.numpy_helper.from_array(np.array([_MIDDLE], np.uint8))
            self._zeros = self._op("ConstantOfShape", self._op("Shape", INPUT), value=middle)
        return self._zeros

    def _multiply(self, tokens: str, weight: Tensor, bias: Tensor) -> str:
        columns = np.ascontiguousarray(weight.T)
        if not self._quantised:
            return self._op("Add", self._op("MatMul", tokens, self._constant(columns)), self._constant(bias))
        table, steps = _quantise(columns, 0, _STEPS)
        whole, step, zero = self._ops("DynamicQuantizeLinear", 3, tokens)
        product = self._op("MatMulInteger", whole, self._constant(table), zero)
        product = self._op("Cast", product, to=onnx.TensorProto.FLOAT)
        product = self._op("Mul", product, self._op("Mul", step, self._constant(steps.reshape(-1))))
        return self._op("Add", product, self._constant(bias))

    def _norm(self, at: str, tokens: str) -> str:
        hidden = self._bert.hidden
        scale = self._constant(self._tensor(at + ".weight", hidden))
        shift = self._constant(self._tensor(at + ".bias", hidden))
        return self._op("LayerNormalization", tokens, scale, shift, epsilon=self._bert.eps, axis=-1)

    def _tensor(self, name: str, *shape: int | None) -> Tensor:
        """One of the weights, of that shape; None where any size will do."""
        full = self._prefix + name
        if full not in self._weights:
            raise WeightsError(f"has no {full}: it is no BERT, or not one of {self._bert.layers} layers")
        found = self._weights.shape(full)
        if len(found) != len(shape) or any(
            want not in (None, side) for want, side in zip(shape, found, strict=True)
        ):
            raise WeightsError(f"has {full} in another shape than config.json says")
        tensor = self._weights[full]
        if not np.isfinite(tensor).all():
            raise WeightsError(f"has numbers in {full} that are none")
        return tensor

    def _constant(self, value: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The name of what comes out."""
        return self._ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def _ops(self, kind: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self._nodes)}_{number}" for number in range(outputs)]
        self._nodes.append(onnx.helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names


def _quantise(values: Tensor, axis: int, most: int) -> tuple[NDArray[np.int8], Tensor]:
    """As whole numbers up to `most` on both sides, and the size of a step along the axis."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    steps = (np.maximum(largest, np.finfo(np.float32).tiny * most) / most).astype(np.float32)
    return np.rint(values / steps).astype(np.int8), steps
