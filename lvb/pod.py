"""What the hosts of one run settle among themselves; for commands only."""

import contextlib
import functools
from collections.abc import Callable

import jax
from ml_collections import config_dict

from lvb import assembly, inputs
from lvb.training import (
    checkpoint,
    peers,
    plan_agreement,
    process,
    provenance,
    roll_call,
    watchdog,
)

PEER_TIMEOUT = 300.0  # Seconds; ours. A step or a save of any model here is shorter.


class Alone:
    """The watch of a run on one host: there is nobody to wait for."""

    timeout = PEER_TIMEOUT

    def tick(self, doing: str, *, patience: float = 1.0) -> None:
        """Does nothing; see `watchdog.Watchdog.tick`."""

    def on_error(self, *exception: object) -> None:
        """Does nothing; see `watchdog.Watchdog.on_error`."""


Watch = Alone | watchdog.Watchdog


def open_watch(timeout: float) -> contextlib.AbstractContextManager[Watch]:
    """The watch over all hosts that have joined.

    Args:
      timeout: seconds that hosts may wait for one another.
    """
    if jax.process_count() == 1:
        return contextlib.nullcontext(Alone())
    return watchdog.Watchdog(
        peers.store(),
        index=jax.process_index(),
        count=jax.process_count(),
        timeout=timeout,
    )


def agree_on_plan(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    *,
    found: checkpoint.Checkpoint | None,
    watch: Watch,
) -> None:
    """Prints who makes which rows; every host prints all of it.

    Args:
      config: of the run.
      run: of the config.
      data: of the run, as this host sees it.
      found: the checkpoint this host continues from.
      watch: over all hosts.

    Raises:
      ValueError: if the hosts differ in what they are about to do, naming it.
      PeerLost: naming a host that has not told its plan.
    """
    fingerprint = plan_agreement.fingerprint
    classes = data.train.class_names
    plan = plan_agreement.host_plan(
        host=jax.process_index(),
        count=jax.process_count(),
        name=roll_call.own_name(),
        devices=jax.local_device_count(),
        batch_size=config.batch_size,
        eval_batch_size=run.plan.eval_batch_size,
        num_val=len(data.val),
        facts={
            "devices in all": jax.device_count(),
            "training images": len(data.train),
            "held-out images": len(data.val),
            "classes": f"{len(classes)} ({fingerprint(list(classes))})",
            "first step": found.notes["step"] if found else 0,
            "checkpoint": fingerprint(found.notes if found else None),
            "steps in all": run.plan.total_steps,
            "config": fingerprint(config.to_dict()),
            "versions": ", ".join(provenance.versions().values()),
            "commit": provenance.commit(),
        },
    )
    plans = [plan]
    if jax.process_count() > 1:
        posted = peers.exchange(
            peers.store(),
            "lvb/plan",
            plan._asdict(),
            index=jax.process_index(),
            count=jax.process_count(),
            # Another may have to list its files first.
            timeout=watch.timeout * watchdog.START_PATIENCE,
        )
        plans = [plan_agreement.HostPlan(**fields) for fields in posted]
    plan_agreement.agree(plans, num_val=len(data.val))
    print("Plan:", plan_agreement.table(plans), sep="\n", flush=True)


def between_batches(signals: process.StopSignals, watch: Watch) -> Callable[[], None]:
    """What is done between the batches of an evaluation.

    One host alone may leave there after a signal; several would leave at different
    batches, and hang.
    """
    if jax.process_count() == 1:
        return signals.check
    return functools.partial(watch.tick, "evaluation")
