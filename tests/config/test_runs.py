"""From a config's `get_hyper` to command lines, and what is refused."""

import pytest

from lvb.config import ablation, hyper, names, runs

HEAD = """
from lvb.config import ablation, schema

def get_config(arg=""):
    config = schema.classification()
    config.seed = 5
    return config
"""


@pytest.fixture
def write(tmp_path):
    def write(body):
        path = tmp_path / "table.py"
        path.write_text(HEAD + body)
        return str(path)

    return write


def test_a_run_per_override_in_order(write):
    path = write("""
def get_hyper(hyper):
    return hyper.product([
        hyper.sweep("config.optimizer.lr", (0.1, 0.2)),
        hyper.sweep("config.seed", (0, 1)),
    ])
""")
    sweep = runs.plan(path)
    assert sweep.name == "table"
    assert sweep.baseline == "optimizer.lr=0.1"
    assert [(r.setting, r.seed) for r in sweep.runs] == [
        ("optimizer.lr=0.1", 0),
        ("optimizer.lr=0.1", 1),
        ("optimizer.lr=0.2", 0),
        ("optimizer.lr=0.2", 1),
    ]
    run = sweep.runs[-1]
    assert run.config == path
    assert run.overrides == ("--config.optimizer.lr=0.2", "--config.seed=1")
    assert run.folder == "optimizer.lr=0.2/seed_1"


def test_names_without_config_are_switches(repo_root):
    path = str(repo_root / "configs" / "ablations" / "lsnet_table7.py")
    sweep = runs.plan(f"{path}:smoke")
    run = sweep.runs[3]
    assert (run.setting, run.seed) == ("no_lkp", 0)
    assert run.config == f"{path}:row=no_lkp,smoke"
    assert run.overrides == ("--config.seed=0",)
    assert sweep.name == "lsnet_table7-smoke"
    # A smoke run is not what the paper measured.
    assert sweep.published == {}
    assert runs.plan(path).published["no_lkp"] == "70.5"


def test_the_seed_is_the_configs_unless_swept(write):
    sweep = runs.plan(write("def get_hyper(hyper):\n    return [{}]\n"))
    assert [(r.setting, r.seed, r.overrides) for r in sweep.runs] == [
        ("default", 5, ())
    ]


def test_folders_are_plain_names(write):
    path = write("""
def get_hyper(hyper):
    return hyper.sweep("config.data.source", ("folder:/a b", "digits"))
""")
    assert runs.plan(path).runs[0].folder == "data.source=folder_a_b/seed_5"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "no function get_hyper"),
        (
            "def get_hyper(h):\n    return h.sweep('config.optimiser.lr', [1])\n",
            "did you mean 'optimizer.lr'",
        ),
        ("def get_hyper(h):\n    return [{}, {}]\n", "'default' with seed 5 twice"),
        (
            "BASELINE = 'x'\ndef get_hyper(h):\n    return [{}]\n",
            "BASELINE='x' is none of its settings default",
        ),
    ],
)
def test_slips_show_before_anything_runs(write, body, message):
    with pytest.raises(ValueError, match=message):
        runs.plan(write(body))


def test_unknown_rows_are_named_with_the_nearest():
    rows = {"kl3": ablation.Row({}, "70.9"), "ks5": ablation.Row({}, "71.6")}
    assert ablation.find_row(rows, "ks5").top1 == "71.6"
    with pytest.raises(ValueError, match=r"did you mean 'kl3'.*the table has kl3, ks5"):
        ablation.find_row(rows, "kl33")


def test_rows_with_equal_options_run_once():
    rows = {
        "a": ablation.Row({"x": 1}, "1"),
        "b": ablation.Row({}, "2"),
        "again": ablation.Row({"x": 1}, "1"),
    }
    overrides = ablation.row_runs(hyper, rows, seeds=(0, 1))
    assert overrides == [
        {"row": row, "config.seed": seed} for row in ("a", "b") for seed in (0, 1)
    ]


def test_resolved_runs_differ_in_what_they_say(repo_root):
    from lvb.config import flags

    path = repo_root / "configs" / "ablations" / "lsnet_table8.py"
    base = flags.load(f"{path}:row=lsnet_t")
    row = flags.load(f"{path}:row=g4")
    assert names.diff(base, row) == ["model.group_width: 8 -> 4"]
