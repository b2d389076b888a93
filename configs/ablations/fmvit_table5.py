r"""FMViT Table 5: its attention, its MLP and the mixing of frequencies.

    python scripts/sweep.py --config configs/ablations/fmvit_table5.py
    python scripts/sweep.py --config configs/ablations/fmvit_table5.py:smoke --run
    python -m lvb.train --config configs/ablations/fmvit_table5.py:row=r3 \
        --workdir runs/r3 --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
The network is FMViT-T0, whose widths and depths are not published: FMViT-T with other
depths, see `lvb.models.fmvit`, choice 15. It has T's accuracy at another size.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "r4"

T0 = {"depths": (3, 1, 2, 1)}

ROWS = {
    "r1": ablation.Row(
        {
            **T0,
            "attention": "mhsa",
            "channel_mixer": "mlp",
            "mix_frequencies": False,
        },
        "68.63",
    ),
    "r2": ablation.Row(
        {**T0, "channel_mixer": "mlp", "mix_frequencies": False}, "67.34"
    ),
    "r3": ablation.Row({**T0, "mix_frequencies": False}, "69.30"),
    "r4": ablation.Row({**T0}, "72.90"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(
        arg, model="fmvit_t", rows=ROWS, row=BASELINE, smoke_options=_smoke_options
    )


def _smoke_options(options):
    return {**options, "depths": (1, 1, 1, 1)}


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
