"""The plan of a job: which host makes which rows, agreed before the first batch.

Hosts that see other data, code or settings would wait for one another for ever, or
count an example twice. Here they find out, and say what differs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class HostPlan(NamedTuple):
    """What one host is about to do.

    Attributes:
      host: its number.
      name: of its machine.
      devices: accelerators it drives.
      train_rows: rows it makes of every training batch.
      eval_batches: batches of one evaluation.
      eval_rows: rows it makes of each of them.
      eval_images: of its rows in one evaluation, those whose mask is set.
      facts: values that must be the same on all hosts.
    """

    host: int
    name: str
    devices: int
    train_rows: int
    eval_batches: int
    eval_rows: int
    eval_images: int
    facts: Mapping[str, Any]


def host_plan(
    *,
    host: int,
    count: int,
    name: str,
    devices: int,
    batch_size: int,
    eval_batch_size: int,
    num_val: int,
    facts: Mapping[str, Any],
) -> HostPlan:
    """Makes the plan of one host.

    Args:
      host: its number.
      count: number of hosts.
      name: of its machine.
      devices: it drives.
      batch_size: of training, over all hosts.
      eval_batch_size: over all hosts.
      num_val: examples of one evaluation.
      facts: values that must be the same on all hosts.
    """
    rows = eval_batch_size // count
    return HostPlan(
        host=host,
        name=name,
        devices=devices,
        train_rows=batch_size // count,
        eval_batches=-(-num_val // eval_batch_size),
        eval_rows=rows,
        eval_images=_masked_rows(
            num_val, eval_batch_size, first=host * rows, rows=rows
        ),
        facts=facts,
    )


def _masked_rows(num_val: int, batch_size: int, *, first: int, rows: int) -> int:
    """How many of a host's rows hold an example; the others are padding."""
    whole, rest = divmod(num_val, batch_size)
    return whole * rows + min(max(rest - first, 0), rows)


def agree(plans: Sequence[HostPlan], *, num_val: int) -> None:
    """Checks that the hosts have one plan.

    Args:
      plans: of all hosts, by number.
      num_val: examples of one evaluation.

    Raises:
      ValueError: naming the first host and value that differ.
    """
    first = plans[0]
    for plan in plans[1:]:
        for name, value in first.facts.items():
            other = plan.facts.get(name)
            if other != value:
                raise ValueError(
                    f"the hosts disagree: host {plan.host} ({plan.name}) has "
                    f"{name}={other}, host 0 ({first.name}) has {value}; give all "
                    "hosts the same code, command, data and workdir."
                )
    total = sum(plan.eval_images for plan in plans)
    if total != num_val:
        raise ValueError(
            f"the hosts' masks sum to {total} images, but there are {num_val}; use an "
            f"eval.batch_size that {len(plans)} hosts divide."
        )


def table(plans: Sequence[HostPlan]) -> str:
    """One line per host."""
    width = max(len(f"{plan.host} ({plan.name})") for plan in plans)
    return "\n".join(
        f"  host {f'{plan.host} ({plan.name})':<{width}}  {plan.devices} devices  "
        f"{plan.train_rows} training rows per step  evaluation: {plan.eval_batches} "
        f"batches x {plan.eval_rows} rows, {plan.eval_images} of them images"
        for plan in plans
    )


def fingerprint(value: Any) -> str:
    """Twelve digits that differ where values differ; anything JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
