r"""ConvNeur Table 5: where the memory is, what replaces it, its fusion and its width.

    python scripts/sweep.py --config configs/ablations/convneur_table5.py
    python scripts/sweep.py --config configs/ablations/convneur_table5.py:smoke --run
    python -m lvb.train --config configs/ablations/convneur_table5.py:row=cm64 \
        --workdir runs/cm64 --data_dir /data

Switches: `row=<id>`, `res=160`, `data=folder:/path`, `smoke` (real digits, a CPU).
The rows IR-RWKV and Titans need branches that lvb does not have yet. A smoke run has
chunks of 16 tokens, so that its first stage writes to the memory, and an eighth of C_m.
"""

from configs.recipes import ablation_rows
from lvb.config import ablation

BASELINE = "per_stage"

ROWS = {
    "local_only": ablation.Row({"memory_at": "none"}, "78.2"),
    "per_stage": ablation.Row({}, "80.0"),
    "per_layer": ablation.Row({"memory_at": "every_block"}, "80.4"),
    "cbam": ablation.Row({"global_branch": "cbam"}, "78.4"),
    "nonlocal": ablation.Row({"global_branch": "nonlocal"}, "79.1"),
    "self_attention": ablation.Row({"global_branch": "attention"}, "79.8"),
    "memory": ablation.Row({}, "80.0"),
    "add": ablation.Row({"fusion": "add"}, "79.6"),
    "concat": ablation.Row({"fusion": "concat"}, "79.5"),
    "gate": ablation.Row({}, "80.0"),
    "cm64": ablation.Row({"memory_width": 64}, "78.6"),
    "cm128": ablation.Row({}, "80.0"),
    "cm256": ablation.Row({"memory_width": 256}, "80.3"),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    return ablation_rows.get_config(
        arg, model="convneur_m3", rows=ROWS, row=BASELINE, smoke_options=_smoke_options
    )


def _smoke_options(options):
    small = {"chunk_size": 16, **options}
    if "memory_width" in options:
        small["memory_width"] = options["memory_width"] // 8
    return small


def get_hyper(hyper):
    """All rows with three seeds each."""
    return ablation.row_runs(hyper, ROWS)
