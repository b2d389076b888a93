r"""FMViT-T on ImageNet-1K (arXiv:2311.05707, Tables 1, 2).

    python -m lvb.train --config configs/fmvit_t.py --workdir runs/fmvit_t \
        --data_dir /data
    python -m lvb.train --config configs/fmvit_t.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`.
Paper: 2.0M parameters, 0.3 GFLOPs, 72.9 top-1. Ours: configs/README.md.
"""

from configs.recipes import fmvit_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False)
    config = fmvit_300ep.get_config(res=arg.res, data=arg.data, smoke=arg.smoke)
    config.model.name = "fmvit_t"
    return config
