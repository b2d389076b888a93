r"""LSNet Table 5: LS convolution against other token mixers.

    python scripts/sweep.py --config configs/ablations/lsnet_table5.py
    python scripts/sweep.py --config configs/ablations/lsnet_table5.py:smoke --run
    python -m lvb.train --config configs/ablations/lsnet_table5.py:row=identity \
        --workdir runs/identity --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
LSNet-T after 100 epochs, hence 71.6 and not the 74.9 of Table 1. The rows (S)W-SA,
SDTA, LSRA, RepMixer, CGA and AFF need mixers that lvb does not have yet.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "lsconv"

ROWS = {
    "identity": ablation.Row({"token_mixer": "identity"}, "69.3"),
    "lsconv": ablation.Row({}, "71.6"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(
        arg, model="lsnet_t", rows=ROWS, row=BASELINE, epochs=ablation_rows.LSNET_EPOCHS
    )


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
