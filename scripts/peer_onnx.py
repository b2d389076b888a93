"""ONNX Runtime as a peer of `scripts/compare_torch.py`."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import peer_process

from lvb.analysis import machine
from lvb.training import allocator


def build(kind: str, path: str, sample: str) -> tuple[Callable[[], Any], dict]:
    """An exported file on the images of `sample`; see `peer_process.Contenders`."""
    del kind
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[1]) or machine.threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    with np.load(sample) as arrays:
        images, expected = arrays["image"], arrays["results"]
    inputs = {session.get_inputs()[0].name: images}

    def call() -> np.ndarray:
        return session.run(None, inputs)[0]

    return call, {"error": peer_process.relative_error(call(), expected)}


def describe() -> dict[str, Any]:
    """Versions."""
    return {"versions": machine.versions(("onnxruntime",))}


def main() -> None:
    """Serves; the arguments are the number of threads, "cpu" and the allocator."""
    if sys.argv[3] == "keep":
        allocator.keep_freed_memory()
    machine.pin(int(sys.argv[1]))
    served = peer_process.Contenders(
        build, wait=lambda result: result, clock=time.perf_counter
    )
    peer_process.serve({**served.handlers(), "describe": describe})


if __name__ == "__main__":
    main()
