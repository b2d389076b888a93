"""One host of a job of several, as a process of its own: `python multihost_worker.py`.

WORKER_JOB says what it does: "train" runs `lvb.train` on its arguments with a small
network, "grid" evaluates many sizes and prints the counts. WORKER_FAULT, such as
"sleep:5", lets this host misbehave at a step.
"""

import json
import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import runs  # noqa: E402

from lvb import train  # noqa: E402
from lvb.data import loader, synthetic, transforms  # noqa: E402
from lvb.metrics import accuracy  # noqa: E402
from lvb.training import evaluation, peers, process, sharding  # noqa: E402

SIZES = (1, 2, 7, 8, 9, 63, 64, 65, 297)
BATCHES = (1, 8, 64)

FAULTS = {
    "sleep": lambda: time.sleep(3600),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "raise": lambda: (_ for _ in ()).throw(ValueError("3 of 10 images are broken")),
}


def misbehave(fault):
    """Does what "name:step" says before the batch of that step is taken."""
    name, _, step = fault.partition(":")
    plain = train.progress.Progress.next_batch
    count = iter(range(10**6))

    def next_batch(timer, batches):
        if next(count) == int(step):
            FAULTS[name]()
        return plain(timer, batches)

    train.progress.Progress.next_batch = next_batch


def labels_right(variables, totals, batch):
    """Counts images whose label is `variables`, as an accuracy is counted."""
    right = (batch["label"] == variables) & batch["mask"]
    pair = accuracy.Mean(right.sum(dtype=jnp.int32), batch["mask"].sum(dtype=jnp.int32))
    return jax.tree.map(jnp.add, totals, {"top1": pair})


def grid():
    """Prints "size batch count" lines as JSON; every host must print the same."""
    mesh = sharding.make_mesh()
    step = jax.jit(labels_right, out_shardings=sharding.replicated(mesh))
    zero = {"top1": accuracy.Mean(np.int32(0), np.int32(0))}
    transform = transforms.EvalTransform(
        size=8, crop_ratio=1.0, channels=1, interpolation="bilinear"
    )
    counts = {}
    for size in SIZES:
        source = synthetic.open_synthetic(
            "val", length=size, size=8, num_classes=3, channels=1
        )
        for batch_size in BATCHES:
            global_size = sharding.round_up(batch_size, mesh)
            with loader.eval_batches(
                source,
                transform,
                batch_size=global_size,
                shard=loader.Shard(jax.process_index(), jax.process_count()),
            ) as batches:
                result = evaluation.evaluate(
                    step,
                    sharding.put_replicated(np.int32(1), mesh),
                    (
                        sharding.put_batch(batch, mesh, names=("label", "mask"))
                        for batch in batches
                    ),
                    totals=sharding.put_replicated(zero, mesh),
                    num_examples=size,
                )
            counts[f"{size} {batch_size}"] = result.totals["top1"]
    print("COUNTS", json.dumps(counts), flush=True)
    return process.DONE


def main():
    if os.environ.get("WORKER_FAULT"):
        misbehave(os.environ["WORKER_FAULT"])
    if os.environ["WORKER_JOB"] == "grid":
        address, count, index = sys.argv[1:]
        if int(count) > 1:
            peers.join(
                address=address, count=int(count), index=int(index), timeout=300.0
            )
        return grid()
    runs.use_micro_net(pytest.MonkeyPatch())
    return train._main(sys.argv)


if __name__ == "__main__":
    sys.exit(process.run(main, name="worker"))
