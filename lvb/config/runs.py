"""The runs of a sweep: what a config's `get_hyper` lists, as command lines."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lvb.config import flags, hyper, names

_SEED = "config.seed"
_PREFIX = "config."


class Run(NamedTuple):
    """One run.

    Attributes:
      setting: what distinguishes it from the others besides its seed, such as "kl3"
        or "optimizer.lr=0.001".
      seed: its seed.
      config: its --config, such as "configs/ablations/lsnet_table7.py:row=kl3,smoke".
      overrides: its other flags, such as "--config.seed=0".
    """

    setting: str
    seed: int
    config: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Where it goes, below the folder of the sweep."""
        return f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '_', self.setting)}/seed_{self.seed}"


class Sweep(NamedTuple):
    """All runs of a config, and what is known about its settings.

    Attributes:
      name: of the config and its argument, fit for a folder: "lsnet_table7-smoke".
      runs: in order.
      baseline: the setting that the others are compared with.
      published: top-1 as printed, by setting, where the config has `ROWS` and no switch
        makes the runs other than the paper's.
    """

    name: str
    runs: tuple[Run, ...]
    baseline: str
    published: Mapping[str, str]


def plan(path_and_arg: str) -> Sweep:
    """Lists the runs of a config.

    Args:
      path_and_arg: as for --config; its switches hold for all runs.

    Returns:
      The sweep. Its baseline is the module's `BASELINE`, else the first setting.

    Raises:
      ValueError: if the config has no `get_hyper`, or that names an unknown leaf or
        switch, the same run twice, or a baseline that is not among its settings.
    """
    path, _, arg = path_and_arg.partition(":")
    module = flags.load_module(path)
    if not callable(getattr(module, "get_hyper", None)):
        raise ValueError(
            f"--config={path} has no function get_hyper(hyper), which lists the runs "
            "of a sweep; see configs/ablations/."
        )
    runs = tuple(_run(path, arg, dict(o)) for o in module.get_hyper(hyper))
    folders = [run.folder for run in runs]
    for run in runs:
        if folders.count(run.folder) > 1:
            raise ValueError(
                f"--config={path}: get_hyper lists {run.setting!r} with seed "
                f"{run.seed} twice; give every run another seed or setting."
            )
    settings = list(dict.fromkeys(run.setting for run in runs))
    baseline = getattr(module, "BASELINE", settings[0] if settings else "")
    if settings and baseline not in settings:
        raise ValueError(
            f"--config={path}: BASELINE={baseline!r} is none of its settings "
            f"{', '.join(settings)}."
        )
    rows = {} if arg else getattr(module, "ROWS", {})
    name = path.rpartition("/")[2].removesuffix(".py")
    return Sweep(
        name="-".join([name, *filter(None, re.split(r"[^A-Za-z0-9_.]+", arg))]),
        runs=runs,
        baseline=baseline,
        published={name: row.top1 for name, row in rows.items()},
    )


def _run(path: str, arg: str, override: dict[str, Any]) -> Run:
    """Makes one run, and loads its config so that a slip shows before it starts."""
    switches = [f"{k}={v}" for k, v in override.items() if not k.startswith(_PREFIX)]
    leaves = {k: v for k, v in override.items() if k.startswith(_PREFIX)}
    text = ",".join([*switches, *filter(None, [arg])])
    config = f"{path}:{text}" if text else path
    loaded = flags.load(config)
    for name in leaves:
        names.check(name.removeprefix(_PREFIX), loaded)
    seed = leaves.get(_SEED, loaded.seed)
    setting = [
        f"{name.removeprefix(_PREFIX)}={value}"
        for name, value in override.items()
        if name != _SEED
    ]
    return Run(
        # A table's own row id stands for itself.
        setting=",".join(setting).removeprefix("row=") or "default",
        seed=seed,
        config=config,
        overrides=tuple(f"--{name}={value}" for name, value in leaves.items()),
    )
