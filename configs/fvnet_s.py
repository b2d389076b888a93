r"""FVNet-S on ImageNet-1K (AAAI 2026, Tables 1, 2).

    python -m lvb.train --config configs/fvnet_s.py --workdir runs/fvnet_s \
        --data_dir /data
    python -m lvb.train --config configs/fvnet_s.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`.
Paper: 6.8M parameters, 1.1 GFLOPs, 78.7 top-1. Ours: configs/README.md.
"""

from configs.recipes import fvnet_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False)
    config = fvnet_300ep.get_config(res=arg.res, data=arg.data, smoke=arg.smoke)
    config.model.name = "fvnet_s"
    config.model.drop_path_rate = 0.05  # Ours: the paper names none.
    return config
