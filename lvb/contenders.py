"""Programs to time: what `python -m lvb.benchmark --latency` compares.

A contender is one compiled program: a model at one batch size, type, image size and
operator form, for inference or for a training step. Fused inference holds its weights
as constants, as an exported file does; otherwise they are arguments. A training step is
that of the trainer: uint8 images are normalised, forward, backward, AdamW, metrics, in
a state whose memory is donated; mixing and erasing are off.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lvb import api, random_weights
from lvb.analysis import cost, timing
from lvb.models import registry
from lvb.tasks import classification
from lvb.training import compilation, optimizer, sharding, state, step

MODES = ("inference", "train")
_NUM_CLASSES = 1000
_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # ImageNet.
_RATE, _DECAY = 1e-3, 0.05  # Any will do: they do not move the time.


class Setup(NamedTuple):
    """What is measured.

    Attributes:
      model: one of `api.list_models()`.
      fused: whether branches and norms are folded away.
      dtype: of the products, "float32" or "bfloat16".
      batch_size: images per call.
      image_size: side of the images, in pixels.
      mode: "inference" or "train".
      op_form: see `lvb.ops.forms`.
    """

    model: str
    fused: bool
    dtype: str
    batch_size: int
    image_size: int
    mode: str
    op_form: str

    @property
    def label(self) -> str:
        """Its name in tables and in `--compare`."""
        fused = "fused" if self.fused else "unfused"
        return (
            f"{self.model}/{self.mode}/{fused}/{self.dtype}/b{self.batch_size}/"
            f"{self.image_size}px/{self.op_form}"
        )


class Contender(NamedTuple):
    """A program ready to be timed.

    Attributes:
      setup: what it is.
      call: runs it once; returns arrays to wait for.
      program: how it was compiled.
      weight_bytes: of its variables.
    """

    setup: Setup
    call: Callable[[], Any]
    program: compilation.CompiledStep
    weight_bytes: int


def setups(
    models: Sequence[str],
    *,
    fused: Sequence[bool],
    dtypes: Sequence[str],
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int],
    mode: str,
    op_forms: Sequence[str],
) -> list[Setup]:
    """Every combination of what was asked for.

    Raises:
      ValueError: if a name is unknown or a combination makes no sense, in one sentence.
    """
    unknown = sorted(set(models) - set(api.list_models()))
    if unknown:
        raise ValueError(
            f"--models: {unknown[0]!r} is unknown; use some of "
            f"{', '.join(api.list_models())}, or all."
        )
    if mode == "train" and any(fused):
        raise ValueError(
            "--mode=train --fused: a fused network has no batch norm to train; leave "
            "--fused out."
        )
    for dtype in dtypes:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"--dtypes: {dtype!r} is unknown; use float32, bfloat16 or float16."
            )
    return [
        Setup(model, fuse, dtype, batch, size, mode, form)
        for batch, size, model, fuse, dtype, form in itertools.product(
            batch_sizes, image_sizes, models, fused, dtypes, op_forms
        )
    ]


def build(setup: Setup, *, variables: Any = None, **fields: Any) -> Contender:
    """Builds and compiles a contender on random images.

    Args:
      setup: what to build.
      variables: in training form; None draws some, which time does not depend on.
      **fields: more fields of the backbone.
    """
    model = api.create_model(
        setup.model,
        num_classes=_NUM_CLASSES,
        dtype=jnp.dtype(setup.dtype),
        op_form=setup.op_form,
        **fields,
    )
    if variables is None:
        variables = random_weights.random_variables(model, image_size=setup.image_size)
    if setup.fused:
        model, variables = api.fuse(model, variables)
    make = _training_step if setup.mode == "train" else _inference
    call, program = make(setup, model, variables)
    return Contender(
        setup, call, program, sum(x.nbytes for x in jax.tree.leaves(variables))
    )


def arrays(setup: Setup) -> dict[str, np.ndarray]:
    """The images of a contender, and in training their labels; the same each time."""
    rng = np.random.default_rng(1)
    shape = (setup.batch_size, setup.image_size, setup.image_size, 3)
    if setup.mode == "inference":
        return {"image": rng.standard_normal(shape, np.float32)}
    return {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, _NUM_CLASSES, setup.batch_size, dtype=np.int32),
    }


def _inference(
    setup: Setup, model: classification.ImageClassifier, variables: Any
) -> tuple[Callable[[], Any], compilation.CompiledStep]:
    images = _put(arrays(setup)["image"])
    if setup.fused:
        program = _compile(lambda x: model.apply(variables, x, train=False), images)
        return lambda: program.call(images), program
    variables = _put(variables)
    program = _compile(lambda v, x: model.apply(v, x, train=False), variables, images)
    return lambda: program.call(variables, images), program


def _training_step(
    setup: Setup, model: classification.ImageClassifier, variables: Any
) -> tuple[Callable[[], Any], compilation.CompiledStep]:
    task = classification.ClassificationTask(
        model=model, num_classes=_NUM_CLASSES, **_PIXELS
    )
    tx = optimizer.make_optimizer(
        "adamw",
        schedule=optax.constant_schedule(_RATE),
        params=variables["params"],
        weight_decay=_DECAY,
        no_decay=registry.family_of(setup.model).no_decay,
    )
    batch = _put(arrays(setup))
    window = step.metric_shapes(task, variables, batch)
    first = state.first_state(_put(variables), tx=tx, keep_ema=False, window=window)

    def train_step(train_state: Any, batch: Any, seed_key: jax.Array) -> Any:
        return step.train_step(train_state, batch, task=task, tx=tx, seed_key=seed_key)

    key = _put(jax.random.key(0))
    program = _compile(train_step, first, batch, key, donate=(0,))
    # Each call takes the memory of the state it is given, so there is only ever one.
    current = [_put(first)]

    def call() -> Any:
        current[0], metrics = program.call(current[0], batch, key)
        return current[0].step, metrics

    return call, program


def _compile(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> compilation.CompiledStep:
    return compilation.compile_step(
        function, *args, in_shardings=_whole(), out_shardings=_whole(), donate=donate
    )


def _put(tree: Any) -> Any:
    """On the one device that is measured, as the programs expect it."""
    return jax.device_put(tree, _whole())


def _whole() -> jax.sharding.NamedSharding:
    return sharding.replicated(sharding.make_mesh(jax.devices()[:1]))


def row(contender: Contender, seconds: Sequence[float]) -> dict[str, Any]:
    """The JSON record of a contender.

    Args:
      contender: as it was timed.
      seconds: per call, of every round.
    """
    setup, program = contender.setup, contender.program
    summary = timing.summarise(seconds)
    needs = cost.cost(program.call)._asdict()
    if setup.fused:  # Constants of the program are no arguments.
        needs["peak_bytes"] += contender.weight_bytes
    return {
        "label": setup.label,
        **setup._asdict(),
        "layout": "NHWC",
        "median_seconds": summary.median,
        "p5_seconds": summary.p5,
        "p95_seconds": summary.p95,
        "min_seconds": summary.minimum,
        "rounds": summary.rounds,
        "images_per_second": setup.batch_size / summary.median,
        "trace_seconds": program.trace_seconds - program.lower_seconds,
        "lower_seconds": program.lower_seconds,
        "compile_seconds": program.compile_seconds,
        "compiled_from_cache": program.cached,
        **needs,
        "weight_bytes": contender.weight_bytes,
        "seconds": list(seconds),
    }
