"""Every config resolves to its golden text and traces.

`LVB_UPDATE_GOLDEN=1 pytest tests/test_configs.py` writes the texts anew; read the
difference before committing it.
"""

import jax
import jax.numpy as jnp
import pytest
from golden_texts import (
    CONFIGS,
    GOLDEN,
    assert_golden,
    assert_step_traces,
    golden_path,
    load,
)
from sizes import slow_but

import lvb
from lvb import assembly
from lvb.models import registry
from lvb.training import sharding

PAPERS = sorted(registry.list_models())
# A config and the switches whose text is kept.
RESOLVED = [
    *(f"{name}.py" for name in PAPERS),
    *(f"{name}.py:smoke" for name in PAPERS),
    "lsnet_t.py:res=160,data=folder:/pictures",
    "quickstart.py",
    *(
        f"quickstart.py:model={name}"
        for name in ("convneur_m1", "fvnet_n", "fmvit_t", "lsnet_b")
    ),
]


@pytest.mark.parametrize("name", RESOLVED)
def test_a_config_resolves_to_its_golden_text(name):
    assert_golden(name)


def test_no_golden_text_is_left_over():
    kept = {golden_path(name).name for name in RESOLVED}
    ours = {p.name for p in GOLDEN.glob("*.txt") if p.stem.split("__")[0] in STEMS}
    assert ours == kept


STEMS = {*PAPERS, "quickstart"}


@pytest.mark.parametrize("name", PAPERS)
def test_each_model_has_a_config_that_names_it(name):
    config = load(f"{name}.py")
    assert config.model.name == name
    assert config.model.num_classes == 1000
    assert (config.schedule.epochs, config.data.image_size) == (300, 224)


def test_the_table_lists_every_config():
    table = (CONFIGS / "README.md").read_text()
    missing = [name for name in PAPERS if f"`{name}.py`" not in table]
    assert missing == []
    for name in PAPERS:
        assert f"configs/{name}.py" in (CONFIGS / f"{name}.py").read_text()


def test_switches_move_what_they_say():
    config = load("lsnet_t.py:res=160,data=folder:/pictures")
    assert config.data.source == "folder:/pictures"
    assert config.data.image_size == 160
    assert config.model.num_classes == 0
    smoke = load("lsnet_t.py:smoke")
    assert smoke.data.source == "synthetic"
    assert smoke.schedule.steps < 50


@pytest.mark.parametrize("name", ["lsnet_t.py:smok", "quickstart.py:size=3"])
def test_unknown_switches_are_refused(name):
    with pytest.raises(ValueError, match="is unknown"):
        load(name)


# Learning rates in the epoch of that number, from 1: the papers', and those of the
# released LSNet logs, whose code lags by an epoch.
@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("lsnet_t", 1, 1e-6),
        ("lsnet_t", 2, 1e-6),
        ("lsnet_t", 3, 1e-6 + (4e-3 - 1e-6) / 5),
        ("lsnet_t", 10, 0.003993),
        ("lsnet_t", 50, 0.003753),
        ("lsnet_t", 100, 0.003038),
        ("lsnet_t", 200, 0.001044),
        ("convneur_m3", 1, 0.0),
        ("convneur_m3", 21, 4e-3),
        ("convneur_m3", 301, 1e-6),
        ("fvnet_t", 1, 1e-6),
        ("fvnet_t", 301, 1e-5),
        ("fmvit_s", 1, 1e-6),
        ("fmvit_s", 301, 1e-5),
    ],
)
def test_learning_rates(name, epoch, rate):
    config = load(f"{name}.py")
    mesh = sharding.make_mesh()
    plan = assembly.plan_run(config, num_train=1_281_167, mesh=mesh)
    per_epoch = {"convneur_m3": 312}.get(name, 625)
    assert plan.steps_per_epoch == per_epoch
    schedule = assembly.make_schedule(config, plan)
    # Half a unit of the logs' last digit; float32 leaves 1e-10 of a sum of 4e-3.
    assert float(schedule((epoch - 1) * per_epoch)) == pytest.approx(rate, abs=5e-7)


# The smallest of each family.
SMALLEST = ("lsnet_t", "convneur_m1", "fvnet_n", "fmvit_t")


# The recipes of a family differ in what their golden texts show.
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_training_step_of_the_recipe_traces(name):
    assert_step_traces(load(f"{name}.py"))


@pytest.mark.parametrize("name", PAPERS)
def test_the_network_of_every_smoke_run_has_a_shape(name):
    config = load(f"{name}.py:smoke")
    # Fused, which traces in a third of the time; what it fuses from is counted in
    # test_counts.py.
    options = assembly.model_options(config, num_classes=10) | {"deploy": True}
    model = lvb.create_model(**options)
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", slow_but(["lsnet_t"], SMALLEST))
def test_a_training_step_of_the_quick_start_traces(name):
    assert_step_traces(load(f"quickstart.py:model={name}"))


def test_any_model_can_be_the_quick_start():
    for name in PAPERS:
        config = load(f"quickstart.py:model={name}")
        task = assembly.make_task(config, num_classes=10)
        assert task.model.backbone.dims[-1] <= 128
