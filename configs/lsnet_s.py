r"""LSNet-S on ImageNet-1K (CVPR 2025, Tables 1, 10, 11).

    python -m lvb.train --config configs/lsnet_s.py --workdir runs/lsnet_s \
        --data_dir /data
    python -m lvb.train --config configs/lsnet_s.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`; `distill=TEACHER` for LSNet*.
Paper: 16.1M parameters, 0.5 GFLOPs, 77.8 top-1. Ours: configs/README.md.
"""

from configs.recipes import lsnet_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False, distill="none")
    config = lsnet_300ep.get_config(**vars(arg))
    config.model.name = "lsnet_s"
    return config
