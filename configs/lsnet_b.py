r"""LSNet-B on ImageNet-1K (CVPR 2025, Tables 1, 10, 11).

    python -m lvb.train --config configs/lsnet_b.py --workdir runs/lsnet_b \
        --data_dir /data
    python -m lvb.train --config configs/lsnet_b.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`; `distill=TEACHER` for LSNet*.
Paper: 23.2M parameters, 1.3 GFLOPs, 80.3 top-1. Ours: configs/README.md.
"""

from configs.recipes import lsnet_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False, distill="none")
    config = lsnet_300ep.get_config(**vars(arg))
    config.model.name = "lsnet_b"
    config.optimizer.weight_decay = 0.05  # Paper; T and S: 0.025.
    return config
