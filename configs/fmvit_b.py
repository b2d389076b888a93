r"""FMViT-B on ImageNet-1K (arXiv:2311.05707, Tables 1, 2).

    python -m lvb.train --config configs/fmvit_b.py --workdir runs/fmvit_b \
        --data_dir /data
    python -m lvb.train --config configs/fmvit_b.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`.
Paper: 24.3M parameters, 4.2 GFLOPs, 82.4 top-1. Ours: configs/README.md.
"""

from configs.recipes import fmvit_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False)
    config = fmvit_300ep.get_config(res=arg.res, data=arg.data, smoke=arg.smoke)
    config.model.name = "fmvit_b"
    config.model.drop_path_rate = 0.1  # Next-ViT.
    return config
