r"""FVNet Table 7: how phases are fused and what bounds the gate.

    python scripts/sweep.py --config configs/ablations/fvnet_table7.py
    python scripts/sweep.py --config configs/ablations/fvnet_table7.py:smoke --run
    python -m lvb.train --config configs/ablations/fvnet_table7.py:row=relu \
        --workdir runs/relu --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "attention"

ROWS = {
    "average": ablation.Row({"fusion": "average"}, "76.4"),
    "concat": ablation.Row({"fusion": "concat"}, "76.8"),
    "se": ablation.Row({"fusion": "se"}, "77.0"),
    "attention": ablation.Row({}, "77.3"),
    "linear": ablation.Row({"gate_activation": "linear"}, "76.1"),
    "relu": ablation.Row({"gate_activation": "relu"}, "76.5"),
    "sigmoid": ablation.Row({"gate_activation": "sigmoid"}, "76.9"),
    "tanh": ablation.Row({}, "77.3"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(arg, model="fvnet_t", rows=ROWS, row=BASELINE)


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
