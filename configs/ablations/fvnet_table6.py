r"""FVNet Table 6: token mixers, and the stages that have the fluid block and attention.

    python scripts/sweep.py --config configs/ablations/fvnet_table6.py
    python scripts/sweep.py --config configs/ablations/fvnet_table6.py:smoke --run
    python -m lvb.train --config configs/ablations/fvnet_table6.py:row=no_gap \
        --workdir runs/no_gap --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
"+Stage3" and "w/o MHSA" are one network; the text's "1.5 % over DWConv" is 1.2 here.
The rows DY-Conv, Involution, MBConv, PConv and LSConv need mixers that FVNet does not
have yet.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "fvnet_t"

ROWS = {
    "depthwise": ablation.Row({"token_mixer": "depthwise"}, "76.1"),
    "fvnet_t": ablation.Row({}, "77.3"),
    "ftfu": ablation.Row({}, "77.3"),
    "no_stage": ablation.Row({"mpfb_stages": (), "mhsa_stages": ()}, "75.8"),
    "stage1": ablation.Row({"mpfb_stages": (1,), "mhsa_stages": ()}, "76.2"),
    "stage2": ablation.Row({"mpfb_stages": (1, 2), "mhsa_stages": ()}, "76.8"),
    "stage3": ablation.Row({"mhsa_stages": ()}, "77.1"),
    "no_mhsa": ablation.Row({"mhsa_stages": ()}, "77.1"),
    "no_gap": ablation.Row({"use_gap": False}, "76.9"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(arg, model="fvnet_t", rows=ROWS, row=BASELINE)


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
