"""Every ablation config against the published tables and against the models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from sizes import slow_but

import lvb
from lvb.analysis import paper_tables, param_table
from lvb.config import flags

# File -> published table, and row id -> the label there; a row printed twice has one.
TABLES = {
    "lsnet_table5": ("LSNet Table 5", {"identity": "w/o LS conv", "lsconv": "LSNet-T"}),
    "lsnet_table7": (
        "LSNet Table 7",
        {
            "no_lkp": "w/o LKP",
            "kl3": "K_L=3",
            "kl5": "K_L=5",
            "kl9": "K_L=9",
            "no_ska": "w/o SKA",
            "ks1": "K_S=1",
            "ks5": "K_S=5",
        },
    ),
    "lsnet_table8": (
        "LSNet Table 8",
        {
            "g1": "C/G=1",
            "g4": "C/G=4",
            "g16": "C/G=16",
            "g32": "C/G=32",
            "no_dw": "w/o DW",
            "no_se": "w/o SE",
        },
    ),
    "fvnet_table6": (
        "FVNet Table 6",
        {
            "depthwise": "DWConv",
            "ftfu": "FTFU",
            "no_stage": "No Stage",
            "stage1": "+Stage1",
            "stage2": "+Stage2",
            "stage3": "+Stage3, w/o MHSA",
            "no_mhsa": "+Stage3, w/o MHSA",
            "no_gap": "w/o GAP",
        },
    ),
    "fvnet_table7": (
        "FVNet Table 7",
        {
            "average": "Average",
            "concat": "Concat",
            "se": "SE-based",
            "linear": "Linear",
            "relu": "ReLU",
            "sigmoid": "Sigmoid",
        },
    ),
    "convneur_table5": (
        "ConvNeur Table 5",
        {
            "local_only": "Local-only",
            "per_stage": "Per-stage",
            "per_layer": "Per-layer",
            "cbam": "CBAM",
            "nonlocal": "Non-local",
            "self_attention": "Self Attention",
            "add": "Addition",
            "concat": "Concatenate",
            "cm64": "C_m 64",
            "cm256": "C_m 256",
        },
    ),
    "fmvit_table5": (
        "FMViT Table 5",
        {
            "r1": "MHSA, MLP",
            "r2": "RLMHSA",
            "r3": "RLMHSA, gMLP",
            "r4": "RLMHSA, gMLP, FMB",
        },
    ),
}


@pytest.fixture(scope="module")
def modules(repo_root):
    return {
        name: flags.load_module(str(repo_root / "configs" / "ablations" / f"{name}.py"))
        for name in TABLES
    }


def test_every_file_is_compared(repo_root):
    files = {path.stem for path in (repo_root / "configs" / "ablations").glob("*.py")}
    assert files == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_options_are_those_of_the_published_row(modules, name):
    source, labels = TABLES[name]
    module = modules[name]
    published = {
        row.label: row for row in paper_tables.ABLATIONS if row.source == source
    }
    built = {label for label, row in published.items() if row.options is not None}
    assert set(labels.values()) == built  # None left out, none made up.
    for row, label in labels.items():
        assert dict(module.ROWS[row].options) == dict(published[label].options)
        assert module.get_config(f"row={row}").model.name == published[label].model
    # What has no label of its own is the network as it is.
    base = module.ROWS[module.BASELINE].options
    for row in set(module.ROWS) - set(labels):
        assert module.ROWS[row].options == base


@pytest.mark.parametrize("name", TABLES)
def test_a_row_sets_its_options_and_nothing_else(modules, name):
    module = modules[name]
    plain = module.get_config(f"row={module.BASELINE}").to_dict()
    for row, switch in itertools.product(module.ROWS, ("", ",smoke")):
        config = module.get_config(f"row={row}{switch}").to_dict()
        assert set(module.ROWS[row].options) <= set(config["model"])
        if not switch:
            for key, value in module.ROWS[row].options.items():
                assert config["model"][key] == value
            for group in set(plain) - {"model"}:
                assert config[group] == plain[group]
        else:
            assert config["data"]["source"] == "digits"


def test_lsnet_is_ablated_at_a_third_of_its_epochs(modules):
    epochs = {name: m.get_config("").schedule.epochs for name, m in modules.items()}
    assert epochs == {
        name: 100 if name.startswith("lsnet") else 300 for name in modules
    }


@functools.cache
def num_params(name, **options):
    """Parameters of a network on digits, traced in training; it checks its options."""
    changes = {"dtype": jnp.dtype(options["dtype"]), "op_form": "reference"}
    model = lvb.create_model(name, **{**options, **changes})
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    rngs = dict.fromkeys(("params", "dropout", "drop_path"), jax.random.key(0))
    shapes = jax.eval_shape(lambda x: model.init(rngs, x, train=True), images)
    return param_table.count_params(shapes["params"])


# Rows that change no parameter: how phases are weighed, activated or placed in time.
SAME_SIZE = {
    ("fvnet_table7", "linear"),
    ("fvnet_table7", "relu"),
    ("fvnet_table7", "sigmoid"),
    ("convneur_table5", "add"),
}


@pytest.mark.parametrize("name", slow_but(["lsnet_table7"], TABLES))
def test_smoke_rows_are_other_networks(modules, name):
    module = modules[name]

    def size(row):
        options = module.get_config(f"row={row},smoke").model.to_dict()
        return num_params(options.pop("name"), **{**options, "num_classes": 10})

    base = size(module.BASELINE)
    for row, (options, _) in module.ROWS.items():
        same = options == module.ROWS[module.BASELINE].options
        assert (size(row) == base) == (same or (name, row) in SAME_SIZE), row
