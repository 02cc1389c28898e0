"""Running ONNX graphs with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from mess.runtime.onnx_file import require_own_weights


class OnnxProgram:
    """An ONNX graph on the CPU, with a fixed number of threads."""

    def __init__(self, content: bytes, threads: int) -> None:
        require_own_weights(content, "a program")
        options = onnxruntime.SessionOptions()
        # Left to itself onnxruntime takes all cores, and no latency would be that of `threads`.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads of one session would slow the next one down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [input_.name for input_ in self._session.get_inputs()]
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.inputs, self.outputs = len(self._inputs), len(self._outputs)

    def __call__(self, *values: onnxruntime.OrtValue) -> Sequence[onnxruntime.OrtValue]:
        inputs = dict(zip(self._inputs, values, strict=True))
        # Not `run`, which turns every output into numpy: features stay the runtime's own.
        return self._session.run_with_ort_values(self._outputs, inputs)

    @staticmethod
    def to_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    @staticmethod
    def to_array(value: onnxruntime.OrtValue) -> NDArray[Any]:
        return value.numpy()
