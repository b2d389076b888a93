r"""ConvNeur-M1 on ImageNet-1K (Tables 1, 2).

    python -m lvb.train --config configs/convneur_m1.py --workdir runs/convneur_m1 \
        --data_dir /data
    python -m lvb.train --config configs/convneur_m1.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`.
Paper: 4.3M parameters, 0.7 GFLOPs, 75.4 top-1. Ours: configs/README.md.
"""

from configs.recipes import convneur_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False)
    config = convneur_300ep.get_config(res=arg.res, data=arg.data, smoke=arg.smoke)
    config.model.name = "convneur_m1"
    return config
