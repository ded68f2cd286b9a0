"""Operators for which the onnx package has no node case, or one whose expected values are random."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, parser
from onnx.helper import np_dtype_to_tensor_dtype

from dhc import load_onnx
from dhc.errors import ModelError
from dhc.frontend.onnx.backend import DhcBackend

DEVICES = ["REFERENCE", "CPU"]


def single(op: str, inputs: dict[str, np.ndarray], outputs: int = 1, opset: int = 22, **attributes: Any) -> Any:
    """A model of one node."""
    made = helper.make_node(op, list(inputs), [f"y{i}" for i in range(outputs)], **attributes)
    infos = [
        helper.make_tensor_value_info(name, np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in made.output]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph([made], op, infos, results), opset_imports=opsets, ir_version=10)


def run(device: str, op: str, inputs: dict[str, np.ndarray], **options: Any) -> list[np.ndarray]:
    return list(DhcBackend.run_model(single(op, inputs, **options), inputs, device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool_against_numpy(device: str, p: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    wanted = (np.abs(x) ** p).sum(axis=(2, 3), keepdims=True) ** (1 / p)
    np.testing.assert_allclose(run(device, "GlobalLpPool", {"x": x}, p=p)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_training_dropout_scales_what_it_keeps(device: str) -> None:
    inputs = {"x": np.ones(4000, np.float32), "ratio": np.array(0.25, np.float32), "training": np.array(True)}
    y, mask = run(device, "Dropout", inputs, outputs=2)
    assert 0.7 < mask.mean() < 0.8
    np.testing.assert_allclose(y, np.where(mask, 1 / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter_is_scatter_elements(device: str, axis: int) -> None:
    rng = np.random.default_rng(0)
    at = np.stack([rng.permutation(3)[:2] for _ in range(4)], axis=-1).astype(np.int64)
    inputs = {"x": rng.standard_normal((4, 4)).astype(np.float32), "at": at, "u": np.ones((2, 4), np.float32)}
    if axis:
        inputs = {name: np.ascontiguousarray(array.T) for name, array in inputs.items()}
    model = single("Scatter", inputs, opset=10, axis=axis)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    np.testing.assert_array_equal(DhcBackend.run_model(model, inputs, device)[0], wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("op", "gates", "outputs"), [("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)])
def test_recurrent_layers_in_16_bits_compute_in_f32(device: str, dtype: Any, op: str, gates: int, outputs: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (5, 2, 3), "w": (1, gates * 4, 3), "r": (1, gates * 4, 4), "b": (1, 2 * gates * 4)}
    inputs = {name: rng.uniform(-1, 1, shape).astype(dtype) for name, shape in shapes.items()}
    wide = {name: array.astype(np.float32) for name, array in inputs.items()}
    found = run(device, op, inputs, outputs=outputs, hidden_size=4)
    wanted = run(device, op, wide, outputs=outputs, hidden_size=4)
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == dtype
        np.testing.assert_array_equal(f, w.astype(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_small_floats_that_are_not_finite(device: str) -> None:
    x = np.array([1, -np.inf, np.inf, np.nan, 0], np.float32).astype(ml_dtypes.float8_e5m2)
    np.testing.assert_array_equal(run(device, "IsNaN", {"x": x})[0], [False, False, False, True, False])
    np.testing.assert_array_equal(run(device, "IsInf", {"x": x})[0], [False, True, True, False, False])


@pytest.mark.parametrize("device", DEVICES)
def test_shrinking_integers_rounds_towards_zero(device: str) -> None:
    x = np.array([-3, -2, -1, 0, 1, 2, 3], np.int32)
    (found,) = run(device, "Shrink", {"x": x}, lambd=1.5, bias=0.5)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [-2, -1, 0, 0, 0, 1, 2])


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.6, 0.7, 1.1, 1.4])
def test_resized_sizes_are_those_that_onnx_infers(scale: float) -> None:
    """Scales are f32: in f64, 10 * 0.7 would be a little less than 7."""
    x, scales = np.zeros((1, 1, 10, 50), np.float32), np.array([1, 1, scale, scale], np.float32)
    model = single("Resize", {"x": x, "roi": np.zeros(0, np.float32), "scales": scales}, opset=13)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"x": x, "roi": np.zeros(0, np.float32), "scales": scales}
    )[0]
    assert load_onnx(model.SerializeToString(), values={"scales": scales}).outputs[0].shape == wanted.shape
    free = load_onnx(model_with_free_sizes(model).SerializeToString(), values={"scales": scales})
    assert free.evaluate(x=x, roi=np.zeros(0, np.float32))[0].shape == wanted.shape


def model_with_free_sizes(model: Any) -> Any:
    """The model with names in place of the sizes of its first input."""
    freed = type(model)()
    freed.CopyFrom(model)
    for i, dim in enumerate(freed.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"n{i}"
    return freed


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradient_model(text: str) -> Any:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18, "ai.onnx.preview.training" : 1]> {text}')


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_by_inputs_and_by_values_between(device: str) -> None:
    """y = sum(tanh(h) * z) with h = x w: what is not in xs or zs is as it is in the graph."""
    model = gradient_model("""g (float[2,3] x, float[3,4] w, float[2,4] z) =>
            (float[2,4] dh, float[2,4] dz, float[3,4] dw) {
        h = MatMul (x, w)
        t = Tanh (h)
        p = Mul (t, z)
        y = ReduceSum <keepdims: int = 0> (p)
        dh, dz = ai.onnx.preview.training.Gradient <xs: strings = ["h", "z"], y: string = "y"> (h, z)
        dw = ai.onnx.preview.training.Gradient <xs: strings = ["w"], zs: strings = ["x"], y: string = "y"> (w, x)
    }""")
    rng = np.random.default_rng(0)
    x, w, z = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3), (3, 4), (2, 4)))
    dh, dz, dw = DhcBackend.run_model(model, [x, w, z], device)
    h = x @ w
    np.testing.assert_allclose(dh, z * (1 - np.tanh(h) ** 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dz, np.tanh(h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw, x.T @ (z * (1 - np.tanh(h) ** 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_at_other_values_and_of_gradients(device: str) -> None:
    model = gradient_model("""g (float[3] x, float[3] other, float[3] apart) =>
            (float[3] d, float[3] dd, float[3] none) {
        xx = Mul (x, x)
        y = Mul (xx, x)
        first = ai.onnx.preview.training.Gradient <xs: strings = ["x"], y: string = "y"> (x)
        d, none = ai.onnx.preview.training.Gradient <xs: strings = ["x", "apart"], y: string = "y"> (other, apart)
        dd = ai.onnx.preview.training.Gradient <xs: strings = ["x"], y: string = "first"> (x)
    }""")
    x, other = np.array([1, 2, 3], np.float32), np.array([5, -1, 0], np.float32)
    d, dd, none = DhcBackend.run_model(model, [x, other, x], device)
    np.testing.assert_allclose(d, 3 * other**2, rtol=1e-6)
    np.testing.assert_allclose(dd, 6 * x, rtol=1e-6)
    np.testing.assert_array_equal(none, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("attributes", "inputs", "message"),
    [
        ('xs: strings = ["x"], y: string = "nothing"', "x", "'nothing' is not defined"),
        ('xs: strings = ["x", "k"], y: string = "y"', "x", "name 2 values, 1 are given"),
        ('xs: strings = ["k"], y: string = "y"', "k", "has no gradient"),
        ('xs: strings = ["x"], y: string = "y"', "k", "the value given for it"),
    ],
)
def test_gradients_that_do_not_fit(attributes: str, inputs: str, message: str) -> None:
    model = gradient_model(f"""g (float[3] x, int64[3] k) => (float[3] d) {{
        y = Mul (x, x)
        d = ai.onnx.preview.training.Gradient <{attributes}> ({inputs})
    }}""")
    with pytest.raises(ModelError, match=message):
        load_onnx(model.SerializeToString())


# ---- random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("like", [False, True])
def test_random_numbers(device: str, dtype: Any, like: bool) -> None:
    code = np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = {"x": np.zeros((40, 50), dtype)} if like else {}
    shape = {} if like else {"shape": [40, 50], "dtype": code}
    suffix = "Like" if like else ""
    (uniform,) = run(device, f"RandomUniform{suffix}", x, low=-2.0, high=4.0, seed=3.0, **shape)
    assert uniform.shape == (40, 50) and uniform.dtype == dtype
    assert uniform.min() >= -2 and uniform.max() <= 4
    assert abs(uniform.astype(np.float64).mean() - 1) < 0.15  # 4 standard deviations
    (normal,) = run(device, f"RandomNormal{suffix}", x, mean=5.0, scale=2.0, seed=3.0, **shape)
    assert normal.shape == (40, 50) and normal.dtype == dtype
    assert abs(normal.astype(np.float64).mean() - 5) < 0.18
    assert abs(normal.astype(np.float64).std() - 2) < 0.13


@pytest.mark.parametrize("device", DEVICES)
def test_bernoulli_follows_its_probabilities(device: str) -> None:
    p = np.repeat(np.array([0, 0.25, 1], np.float32), 2000).reshape(3, 2000)
    (drawn,) = run(device, "Bernoulli", {"p": p}, dtype=TensorProto.INT32, seed=1.0)
    assert drawn.dtype == np.int32
    assert set(drawn[0]) == {0} and set(drawn[2]) == {1}
    assert abs(drawn[1].mean() - 0.25) < 0.04


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_multinomial_follows_its_probabilities(device: str, dtype: Any) -> None:
    wanted = np.array([[0.5, 0, 0.3, 0.2], [0, 0, 0, 1]])
    with np.errstate(divide="ignore"):
        x = (np.log(wanted) + np.array([[3], [-2]])).astype(dtype)  # not normalized
    (drawn,) = run(device, "Multinomial", {"x": x}, sample_size=4000, seed=2.0, dtype=TensorProto.INT64)
    assert drawn.shape == (2, 4000) and drawn.dtype == np.int64
    shares = np.stack([np.bincount(row, minlength=4) / 4000 for row in drawn])
    np.testing.assert_allclose(shares, wanted, atol=0.033)
    assert shares[0, 1] == 0 and shares[1, 3] == 1


def test_multinomial_gives_the_same_for_the_same_seed() -> None:
    x = {"x": np.zeros((1, 5), np.float32)}
    first, again, other = (run("CPU", "Multinomial", x, sample_size=50, seed=s)[0] for s in (1.0, 1.0, 2.0))
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# ---- regions ---------------------------------------------------------------------------------------------------------

REGIONS = np.array(
    [
        [0, 0, 0, 6, 7],
        [1, 1, 2, 4, 3],
        [1, 5, 6, 20, 30],  # leaves the image
        [0, 12, 14, 3, 2],  # ends before it starts
        [1, 30, 30, 40, 40],  # outside
        [0, 2.5, 3.5, 4.5, 5.5],  # halves
        [1, 3, 3, 3, 3],
    ],
    np.float32,
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pooled", [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_max_roi_pool_against_onnxruntime(device: str, pooled: tuple[int, int], scale: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    inputs = {"x": x, "rois": REGIONS}
    model = single("MaxRoiPool", inputs, opset=21, pooled_shape=pooled, spatial_scale=scale)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    assert (wanted == 0).any() and (wanted != 0).any() or scale == 0.5
    np.testing.assert_array_equal(DhcBackend.run_model(model, inputs, device)[0], wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_max_roi_pool_of_other_types(device: str, dtype: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float16)
    single_precision = run(device, "MaxRoiPool", {"x": x.astype(np.float32), "rois": REGIONS}, pooled_shape=[2, 2])
    (found,) = run(device, "MaxRoiPool", {"x": x.astype(dtype), "rois": REGIONS.astype(dtype)}, pooled_shape=[2, 2])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, single_precision[0])


def test_max_roi_pool_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match="do not fit"):
        run("REFERENCE", "MaxRoiPool", {"x": np.zeros((1, 2, 3), np.float32), "rois": REGIONS}, pooled_shape=[1, 1])


# ---- the whole domain ------------------------------------------------------------------------------------------------


def test_the_whole_domain_is_handled() -> None:
    """Every version of every operator that is valid in some opset from 7 on."""
    from dhc.frontend.onnx.functions import has_schema_function
    from dhc.frontend.onnx.handlers import find_handler

    missing = []
    for schema in defs.get_all_schemas_with_history():
        if schema.domain or schema.deprecated:
            continue
        newest = defs.onnx_opset_version()
        valid_until = max(v for v in range(1, newest + 1) if _since(schema.name, v) == schema.since_version)
        if valid_until < 7:
            continue
        if find_handler("", schema.name, schema.since_version) is None and not has_schema_function(
            "ai.onnx", schema.name, schema.since_version
        ):
            missing.append((schema.name, schema.since_version))
    assert missing == []


def _since(name: str, opset: int) -> int:
    try:
        return int(defs.get_schema(name, opset).since_version)
    except defs.SchemaError:
        return 0
