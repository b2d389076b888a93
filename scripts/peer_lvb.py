"""lvb as a peer of `scripts/compare_torch.py`."""

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_process
from flax import traverse_util

from lvb import api, contenders, random_weights
from lvb.analysis import cost, flops, machine, roofline, timing
from lvb.layers import memory_branch
from lvb.models import convneur
from lvb.training import allocator, compilation, exporting, provenance

Built = tuple[Callable[[], Any], dict[str, Any]]


def build(kind: str, **options: Any) -> Built:
    """A function to time and facts about it, see `peer_process.Contenders`."""
    builders = {"inference": _network, "train": _network, "memory": _memory}
    return builders[kind](kind, **options)


def _network(
    kind: str,
    model: str,
    batch_size: int,
    image_size: int,
    sample: str,
    dtype: str,
    **fields: Any,
) -> Built:
    """A network; `sample` is the file for its inputs, weights and results."""
    setup = contenders.Setup(
        model=model,
        fused=kind == "inference",
        dtype=dtype,
        batch_size=batch_size,
        image_size=image_size,
        mode=kind,
        op_form="auto",
    )
    module = api.create_model(model, **fields)
    variables = _variables(module, image_size)
    contender = contenders.build(setup, variables=variables, **fields)
    call = contender.call
    if kind == "inference":
        results = np.asarray(call(), np.float32)
    else:  # Loss, gradient and, as the second loss, what the optimiser made of it.
        first, second = (call()[1] for _ in range(2))
        results = np.array(
            [_mean(first["loss"]), _mean(first["grad_norm"]), _mean(second["loss"])]
        )
    if setup.fused:
        _, variables = api.fuse(module, variables)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    np.savez(sample, results=results, **contenders.arrays(setup), **flat)
    program = contender.program
    return call, {
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.compile_seconds,
        "compiled_from_cache": program.cached,
        **cost.cost(program.call)._asdict(),
    }


def _variables(module: Any, image_size: int) -> Any:
    drawn = random_weights.random_variables(module, image_size=image_size)
    return random_weights.calibrated(module, drawn, random_weights.noise(image_size))


def _mean(metric: Any) -> float:
    return float(metric.total) / int(metric.count)


def _memory(
    kind: str,
    tokens: int,
    width: int,
    batch_size: int,
    backward: bool,
    preset: str,
    sample: str,
    op_form: str = "auto",
) -> Built:
    """The neural memory on a square map of so many tokens.

    `sample` is the file for its inputs, weights and, without clip, results.
    """
    del kind
    side = round(tokens**0.5)
    fields = convneur.PRESETS[preset]._asdict()
    epsilon = fields.pop("memory_norm_eps")
    layer = memory_branch.NeuralMemory(norm_epsilon=epsilon, op_form=op_form, **fields)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch_size, side, side, width), np.float32))
    variables = layer.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(  # No weight is 0.
        lambda w: w + 0.02 * rng.standard_normal(w.shape, np.float32), variables
    )
    unclipped = layer.clone(inner_clip=0.0)
    results = unclipped.apply(variables, x, train=False)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    np.savez(sample, results=results, image=x, **flat)

    def make(layer: memory_branch.NeuralMemory) -> Callable[..., Any]:
        def forward(variables: Any, x: jax.Array) -> jax.Array:
            return layer.apply(variables, x, train=True)

        def loss(variables: Any, x: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(forward(variables, x)))

        return jax.value_and_grad(loss, argnums=(0, 1)) if backward else forward

    function = make(layer)
    start = time.perf_counter()
    program = jax.jit(function).lower(variables, x).compile()
    facts = {"compile_seconds": time.perf_counter() - start}
    # In XLA's form, since the products of a native program are not in the jaxpr.
    countable = make(layer.clone(op_form="shift"))
    facts["product_flops"] = 2 * flops.count_macs(countable, variables, x)
    return lambda: program(variables, x), facts | cost.cost(program)._asdict()


def export(model: str, path: str) -> dict[str, Any]:
    """Writes the fused model, random weights, as an ONNX file for 224 px."""
    variables = _variables(api.create_model(model), 224)
    module = api.create_model(model, op_form="reference")
    module, fused = api.fuse(module, variables)
    content = exporting.to_onnx(
        lambda x: module.apply(fused, x, train=False),
        image_shape=(224, 224, 3),
        dtype="float32",
    ).content
    pathlib.Path(path).write_bytes(content)
    return {}


def limits() -> dict[str, Any]:
    """What the machine reaches in a matrix product and elementwise."""
    timed = timing.interleave(roofline.limit_contenders(), rounds=10, warmup=2)
    return roofline.limits(timed)._asdict()


def describe() -> dict[str, Any]:
    """The machine, versions and the commit."""
    return {**machine.describe(), "commit": provenance.commit()}


def main() -> None:
    """Serves; the first argument is the number of threads."""
    allocator.keep_freed_memory()  # As the commands of lvb do.
    machine.pin(int(sys.argv[1]))
    compilation.enable_cache("default")
    served = peer_process.Contenders(
        build, wait=jax.block_until_ready, clock=time.perf_counter
    )
    peer_process.serve(
        {**served.handlers(), "export": export, "describe": describe, "limits": limits}
    )


if __name__ == "__main__":
    main()
