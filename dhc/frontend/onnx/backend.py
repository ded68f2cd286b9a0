"""ONNX's standard backend interface, so that ONNX's own test runner and other tools drive dhc.

``prepare(model, device)`` returns an object with ``run(inputs)``. Devices: ``CPU`` (compiled) and ``REFERENCE`` (the
interpreter). Inputs that decide the structure of a graph (axes, scales, pads that ONNX passes as tensors) become part
of the compiled model: it is specialised for the values of the first run and again for others. So it is for the
lengths and shapes in sequences and optionals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from onnx.backend.base import Backend, BackendRep

from dhc_runtime.errors import UnsupportedError, UsageError

from dhc.frontend.onnx import load_onnx
from dhc.frontend.onnx.containers import containers_of, deciding_inputs, tensors_of, value_of
from dhc.frontend.onnx.context import NeedsValueError
from dhc.frontend.onnx.tensors import to_array

T = TypeVar("T")
_CONTAINERS = ("sequence_type", "optional_type")
DEVICES = {"CPU": "cpu", "REFERENCE": "reference"}


class DhcBackendRep(BackendRep):  # type: ignore[misc]
    """A prepared model.

    Attributes:
        graph: the graph of the latest specialisation.
        fixed: names of the inputs that became part of it.
        compiled: the graph after all passes (None for the interpreter).
        names: names of the inputs.
        containers: names of those that are sequences or optionals.
    """

    def __init__(self, model: Any, target: str, options: dict[str, Any]) -> None:
        self._data = model.SerializeToString()
        self._target = target
        initialized = {t.name for t in model.graph.initializer}
        inputs = [v for v in model.graph.input if v.name not in initialized]
        self.names = [v.name for v in inputs]
        self.containers = [v.name for v in inputs if v.type.WhichOneof("value") in _CONTAINERS]
        self._outputs = [v.name for v in model.graph.output]
        self._options = options
        self._prepared: dict[Any, tuple[Any, Any, tuple[str, ...]]] = {}
        self._decisive: tuple[str, ...] = ()
        self.graph: Any = None
        self.compiled: Any = None
        self.fixed: tuple[str, ...] = ()

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Runs the model on inputs in the order of the model's, or by name.

        Raises:
            dhc.errors.DhcError: the model or the inputs do not fit.
        """
        given = dict(inputs) if isinstance(inputs, dict) else dict(zip(self.names, inputs))
        graph, session, fixed = self._specialise(given)
        containers = containers_of(graph)
        for name in containers.keys() & given.keys():
            given.update(tensors_of(containers[name], given[name]))
        feed = {v.name: given[v.name] for v in graph.inputs if v.name in given}
        self.graph, self.fixed = graph, fixed
        if session is None:
            found = dict(zip(graph.output_names, graph.evaluate(**feed), strict=True))
        else:
            found = session.run(feed)
        return tuple(value_of(containers.get(name, name), found) for name in self._outputs)

    def _specialise(self, given: dict[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
        # The interpreter holds sequences and optionals as they are.
        containers = [] if self._target == "reference" else self.containers
        shapes = {n: shapes_in(given[n]) for n in containers if n in given}
        key = self._key(given, shapes)
        if key in self._prepared:
            return self._prepared[key]
        fixed = {n: given[n] for n in self._decisive if n in given}
        finish = (lambda graph: None) if self._target == "reference" else self._compiled
        graph, session = specialised(self._data, given, shapes, fixed, finish)
        self._decisive = tuple(sorted(fixed))
        key = self._key(given, shapes)
        self._prepared[key] = (graph, session, self._decisive)
        return self._prepared[key]

    def _compiled(self, graph: Any) -> Any:
        # The driver lies above the frontends; only this interface reaches up to it.
        artifact = import_module("dhc.compiler").compile(graph, targets=[self._target], **self._options)
        self.compiled = artifact.graph
        return artifact.session()

    def _key(self, given: dict[str, Any], shapes: dict[str, Any]) -> Any:
        values = ((n, np.asarray(given[n])) for n in self._decisive if n in given)
        return repr(sorted(shapes.items())), tuple((n, v.tobytes(), v.shape) for n, v in values)


def specialised(
    data: bytes, given: Mapping[str, Any], shapes: Mapping[str, Any], fixed: dict[str, Any], finish: Callable[[Any], T]
) -> tuple[Any, T]:
    """A model imported with as few inputs fixed to their values as possible.

    Args:
        data: the model.
        given: values of inputs by name.
        shapes: see `load_onnx`.
        fixed: inputs that are fixed already; those found necessary are added.
        finish: what shall be done with the graph; may refuse it.

    Returns:
        The graph, and the result of `finish`.

    Raises:
        dhc.errors.UnsupportedError: no values help.
    """
    while True:
        graph = None
        try:
            graph = load_onnx(data, shapes=shapes, values=fixed)
            return graph, finish(graph)
        except UnsupportedError as error:
            if isinstance(error, NeedsValueError):
                wanted = list(error.inputs)
            else:
                wanted = [] if graph is None else deciding_inputs(graph)
            missing = [n for n in wanted if n not in fixed and n in given]
            if not missing:
                raise
        fixed.update({n: given[n] for n in missing})


def shapes_in(value: Any) -> Any:
    """What `load_onnx` wants to know of a container: the shape of each element, or None."""
    if value is None:
        return None
    return [shapes_in(v) for v in value] if isinstance(value, (list, tuple)) else np.shape(value)


class DhcBackend(Backend):  # type: ignore[misc]
    """dhc as an ONNX backend."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator of the model has a handler."""
        from dhc_runtime.errors import DhcError

        from dhc.frontend.onnx.importer import Importer

        try:
            Importer(model, "model", None).check_operators()
        except DhcError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> DhcBackendRep:
        """Reads a ModelProto; compiling happens at the first run, when the inputs that decide the structure are known.

        Raises:
            UsageError: an unknown device.
            dhc.errors.ModelError: the model is not valid.
        """
        target = DEVICES.get(device.split(":")[0].upper())
        if target is None:
            raise UsageError(f"there is no device {device!r}", hint=f"devices are {', '.join(DEVICES)}")
        return DhcBackendRep(model, target, kwargs)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Prepares and runs a model once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Runs a single node at the newest opset (or that of ``opset_imports``)."""
        from onnx import defs, helper

        arrays = [to_array(x) if hasattr(x, "data_type") else np.asarray(x) for x in inputs]
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in zip([n for n in node.input if n], arrays)
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "node", infos, outputs)
        opsets = kwargs.pop("opset_imports", [helper.make_opsetid(node.domain, defs.onnx_opset_version())])
        return cls.run_model(helper.make_model(graph, opset_imports=opsets), arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """``CPU`` and ``REFERENCE``."""
        return device.split(":")[0].upper() in DEVICES


is_compatible = DhcBackend.is_compatible
prepare = DhcBackend.prepare
run_model = DhcBackend.run_model
run_node = DhcBackend.run_node
supports_device = DhcBackend.supports_device
