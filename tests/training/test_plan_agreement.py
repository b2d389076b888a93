"""The plan of a job: rows, masks, and what hosts may differ in."""

import json

import numpy as np
import pytest

from lvb.data import loader, synthetic, transforms
from lvb.training import plan_agreement

FACTS = {"training images": 10, "config": "abc"}


def plans(count, *, num_val=10, eval_batch_size=4, facts=FACTS):
    return [
        plan_agreement.host_plan(
            host=host,
            count=count,
            name=f"node{host}",
            devices=2,
            batch_size=8,
            eval_batch_size=eval_batch_size,
            num_val=num_val,
            facts=facts,
        )
        for host in range(count)
    ]


@pytest.mark.parametrize("num_val", [1, 2, 7, 8, 9, 65])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (2, 8), (4, 64), (2, 2)])
def test_masks_are_those_of_the_loader(num_val, count, batch_size):
    source = synthetic.open_synthetic("val", length=num_val, size=32)
    transform = transforms.EvalTransform(
        size=32, crop_ratio=1.0, channels=3, interpolation="bicubic"
    )
    made = plans(count, num_val=num_val, eval_batch_size=batch_size)
    for host, plan in enumerate(made):
        with loader.eval_batches(
            source,
            transform,
            batch_size=batch_size,
            shard=loader.Shard(host, count),
        ) as batches:
            masks = [batch["mask"] for batch in batches]
        assert plan.eval_batches == len(masks)
        assert all(len(mask) == plan.eval_rows for mask in masks)
        assert plan.eval_images == np.concatenate(masks).sum()
    plan_agreement.agree(made, num_val=num_val)


def test_hosts_that_agree_pass():
    plan_agreement.agree(plans(4), num_val=10)


def test_a_host_that_differs_is_named_with_the_value():
    two = plans(3)
    two[2] = two[2]._replace(facts={**FACTS, "training images": 9})
    with pytest.raises(
        ValueError,
        match=r"host 2 \(node2\) has training images=9, host 0 \(node0\) has 10",
    ):
        plan_agreement.agree(two, num_val=10)


def test_masks_must_count_every_image():
    with pytest.raises(ValueError, match="masks sum to 10 images, but there are 11"):
        plan_agreement.agree(plans(2), num_val=11)


def test_every_host_has_a_line():
    lines = plan_agreement.table(plans(2, num_val=5)).splitlines()
    assert lines == [
        f"  host {host} (node{host})  2 devices  4 training rows per step  "
        f"evaluation: 2 batches x 2 rows, {images} of them images"
        for host, images in ((0, 3), (1, 2))
    ]


def test_a_plan_travels_as_json():
    (plan,) = plans(1)
    assert plan_agreement.HostPlan(**json.loads(json.dumps(plan._asdict()))) == plan


def test_fingerprints_follow_the_content_not_the_order():
    fingerprint = plan_agreement.fingerprint
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint(None)) == 12
