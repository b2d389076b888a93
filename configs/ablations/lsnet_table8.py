r"""LSNet Table 8: kernel groups, extra depthwise convolution and squeeze-and-excite.

    python scripts/sweep.py --config configs/ablations/lsnet_table8.py
    python scripts/sweep.py --config configs/ablations/lsnet_table8.py:smoke --run
    python -m lvb.train --config configs/ablations/lsnet_table8.py:row=g4 \
        --workdir runs/g4 --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
LSNet-T after 100 epochs, hence 71.6 and not the 74.9 of Table 1.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "lsnet_t"

ROWS = {
    "lsnet_t": ablation.Row({}, "71.6"),
    "g1": ablation.Row({"group_width": 1}, "71.7"),
    "g4": ablation.Row({"group_width": 4}, "71.6"),
    "g16": ablation.Row({"group_width": 16}, "71.3"),
    "g32": ablation.Row({"group_width": 32}, "70.9"),
    "no_dw": ablation.Row({"local_mixer": "identity"}, "71.1"),
    "no_se": ablation.Row({"squeeze_excite": False}, "71.3"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(
        arg, model="lsnet_t", rows=ROWS, row=BASELINE, epochs=ablation_rows.LSNET_EPOCHS
    )


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
