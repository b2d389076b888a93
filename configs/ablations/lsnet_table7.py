r"""LSNet Table 7: what large-kernel perception and small-kernel aggregation are worth.

    python scripts/sweep.py --config configs/ablations/lsnet_table7.py
    python scripts/sweep.py --config configs/ablations/lsnet_table7.py:smoke --run
    python -m lvb.train --config configs/ablations/lsnet_table7.py:row=kl3 \
        --workdir runs/kl3 --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
LSNet-T after 100 epochs, hence 71.6 and not the 74.9 of Table 1.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "lsnet_t"

ROWS = {
    "lsnet_t": ablation.Row({}, "71.6"),
    "no_lkp": ablation.Row({"perceive": False}, "70.5"),
    "kl3": ablation.Row({"ls_kernel_size": 3}, "70.9"),
    "kl5": ablation.Row({"ls_kernel_size": 5}, "71.2"),
    "kl9": ablation.Row({"ls_kernel_size": 9}, "71.5"),
    "no_ska": ablation.Row({"aggregate": False}, "70.1"),
    "ks1": ablation.Row({"small_kernel": 1}, "69.6"),
    "ks5": ablation.Row({"small_kernel": 5}, "71.6"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(
        arg, model="lsnet_t", rows=ROWS, row=BASELINE, epochs=ablation_rows.LSNET_EPOCHS
    )


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
