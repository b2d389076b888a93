"""Configs for ablations, distillation and fine-tuning: golden texts and traces.

`LVB_UPDATE_GOLDEN=1 pytest tests/test_study_configs.py` writes the texts anew; read the
difference before committing it.
"""

import pytest
from golden_texts import (
    GOLDEN,
    assert_golden,
    assert_step_traces,
    golden_path,
    load,
)

from lvb.config import names, rates
from lvb.training import optimizer

TABLES = (
    *("convneur_table5", "fmvit_table5", "fvnet_table6", "fvnet_table7"),
    *("lsnet_table5", "lsnet_table7", "lsnet_table8"),
)
# A config and the switches whose text is kept.
RESOLVED = [
    *(f"ablations/{name}.py" for name in TABLES),
    *(f"ablations/{name}.py:smoke" for name in TABLES),
    "finetune_folder.py:data=folder:/pictures,checkpoint=W",
    "finetune_folder.py:freeze=backbone,res=160",
    "finetune_folder.py:smoke",
    "fashion_mnist_distill.py:role=teacher",
    "fashion_mnist_distill.py:kind=soft,teacher=W",
]


@pytest.mark.parametrize("name", RESOLVED)
def test_a_config_resolves_to_its_golden_text(name):
    assert_golden(name)


def test_no_golden_text_is_left_over():
    stems = ("ablations_", "finetune_folder", "fashion_mnist_distill")
    ours = {p.name for p in GOLDEN.glob("*.txt") if p.name.startswith(stems)}
    assert ours == {golden_path(name).name for name in RESOLVED}


# The quickest of the small networks, then one row of each family. The networks of all
# rows are traced in config/test_ablations.py.
FAST = (
    *("ablations/lsnet_table7.py:smoke,row=no_ska", "finetune_folder.py:smoke"),
    *("fashion_mnist_distill.py", "ablations/fvnet_table7.py:smoke,row=relu"),
)
SLOW = (
    *("ablations/convneur_table5.py:row=cm256", "ablations/lsnet_table7.py"),
    *("ablations/fmvit_table5.py:row=r1", "ablations/fvnet_table6.py:row=stage1"),
)


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_training_step_traces(name):
    assert_step_traces(load(name))


@pytest.mark.parametrize(
    ("freeze", "expected", "frozen_statistics"),
    [
        ("none", {"backbone": 0.1}, False),
        ("backbone", {"backbone": 0.0}, True),
        (
            "stem+stage2",
            {"backbone": 0.1, "backbone/stem": 0.0, "backbone/stage2": 0.0},
            False,
        ),
    ],
)
def test_freezing_is_a_matter_of_rates(freeze, expected, frozen_statistics):
    config = load(f"finetune_folder.py:freeze={freeze}")
    assert rates.parse_rates(config.optimizer.layer_rates) == expected
    assert config.model.frozen_batch_norm == frozen_statistics
    params = {
        "backbone": {"stem": {"w": 1}, "stage2": {"w": 1}, "stage3": {"w": 1}},
        "head": {"w": 1},
    }
    tree = optimizer.rate_tree(params, expected)
    assert tree["head"]["w"] == 1.0
    assert (tree["backbone"]["stem"]["w"] == 0) == (freeze != "none")
    assert (tree["backbone"]["stage3"]["w"] == 0) == (freeze == "backbone")


def test_unknown_roles_are_refused():
    with pytest.raises(ValueError, match="use student or teacher"):
        load("fashion_mnist_distill.py:role=pupil")


@pytest.mark.parametrize("name", ["lsnet_t", "lsnet_s", "lsnet_b"])
def test_lsnet_star_is_a_switch(name):
    plain, star = load(f"{name}.py"), load(f"{name}.py:distill=t.onnx")
    assert names.diff(plain.to_dict(), star.to_dict()) == [
        "distillation.kind: 'none' -> 'hard'",
        "distillation.teacher: '' -> 't.onnx'",
        "model.distilled: False -> True",
    ]
