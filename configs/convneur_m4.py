r"""ConvNeur-M4 on ImageNet-1K (Tables 1, 2).

    python -m lvb.train --config configs/convneur_m4.py --workdir runs/convneur_m4 \
        --data_dir /data
    python -m lvb.train --config configs/convneur_m4.py:smoke --workdir runs/smoke

Switches: `res=160`, `data=folder:/path`, `smoke`.
Paper: 18.1M parameters, 3.1 GFLOPs, 81.5 top-1. Ours: configs/README.md.
"""

from configs.recipes import convneur_300ep, switches
from lvb.config import args


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, res=224, data=switches.IMAGENET, smoke=False)
    config = convneur_300ep.get_config(res=arg.res, data=arg.data, smoke=arg.smoke)
    config.model.name = "convneur_m4"
    return config
