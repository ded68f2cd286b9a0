"""ONNX's standard backend interface, so that ONNX's own test runner and other tools drive dhc.

``prepare(model, device)`` returns an object with ``run(inputs)``. Devices: ``CPU`` (compiled) and ``REFERENCE`` (the
interpreter). Inputs that decide the structure of a graph (axes, scales, pads that ONNX passes as tensors) become part
of the compiled model: it is specialised for the values of the first run and again for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from onnx.backend.base import Backend, BackendRep

from dhc_runtime.errors import UsageError

from dhc.frontend.onnx import load_onnx
from dhc.frontend.onnx.context import NeedsValueError
from dhc.frontend.onnx.tensors import to_array

DEVICES = {"CPU": "cpu", "REFERENCE": "reference"}


class DhcBackendRep(BackendRep):  # type: ignore[misc]
    """A prepared model.

    Attributes:
        graph: the graph of the latest specialisation.
        fixed: names of the inputs that became part of it.
        compiled: the graph after all passes (None for the interpreter).
    """

    def __init__(self, data: bytes, target: str, names: Sequence[str], options: dict[str, Any]) -> None:
        self._data = data
        self._target = target
        self._names = list(names)
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
        given = dict(inputs) if isinstance(inputs, dict) else dict(zip(self._names, inputs))
        graph, session, fixed = self._specialise(given)
        feed = {v.name: given[v.name] for v in graph.inputs if v.name in given}
        self.graph, self.fixed = graph, fixed
        if session is None:
            return tuple(graph.evaluate(**feed))
        return tuple(session.run(feed).values())

    def _specialise(self, given: dict[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
        key = tuple((n, given[n].tobytes(), given[n].shape) for n in self._decisive if n in given)
        if key in self._prepared:
            return self._prepared[key]
        fixed = {n: given[n] for n in self._decisive}
        while True:
            try:
                graph = load_onnx(self._data, values=fixed)
                break
            except NeedsValueError as error:
                missing = [n for n in error.inputs if n not in fixed and n in given]
                if not missing:
                    raise
                fixed.update({n: given[n] for n in missing})
        self._decisive = tuple(sorted(fixed))
        key = tuple((n, np.asarray(given[n]).tobytes(), np.shape(given[n])) for n in self._decisive)
        session = None
        if self._target != "reference":
            # The driver lies above the frontends; only this interface reaches up to it.
            artifact = import_module("dhc.compiler").compile(graph, targets=[self._target], **self._options)
            self.compiled = artifact.graph
            session = artifact.session()
        self._prepared[key] = (graph, session, self._decisive)
        return self._prepared[key]


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
        initialized = {t.name for t in model.graph.initializer}
        names = [v.name for v in model.graph.input if v.name not in initialized]
        return DhcBackendRep(model.SerializeToString(), target, names, kwargs)

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
