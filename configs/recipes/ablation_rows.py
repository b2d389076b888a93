"""What all ablation tables share: the variant's recipe, or small networks on digits."""

from configs import convneur_m3, fmvit_t, fvnet_t, lsnet_t, quickstart
from configs.recipes import switches
from lvb.config import ablation, args

LSNET_EPOCHS = 100  # LSNet, section 4.4.

_FULL = {
    "convneur_m3": convneur_m3,
    "fmvit_t": fmvit_t,
    "fvnet_t": fvnet_t,
    "lsnet_t": lsnet_t,
}


def get_config(arg, *, model, rows, row, epochs=300, smoke_options=dict):
    """Returns the config of one row of a table.

    Args:
      arg: what stands behind the colon: `row`, `res`, `data`, `smoke`.
      model: name of the network the table is about.
      rows: the table, see `ablation.Row`.
      row: the row that is meant when `arg` names none.
      epochs: length of the paper's ablation runs.
      smoke_options: from a row's options to those of its small network.
    """
    arg = args.parse(arg, row=row, res=224, data=switches.IMAGENET, smoke=False)
    chosen = ablation.find_row(rows, arg.row)
    if arg.smoke:
        config = quickstart.get_config(f"model={model}")
        config.schedule.update(epochs=3.0, warmup_epochs=1.0)
        config.eval.every_epochs = 3.0
        options = smoke_options(chosen.options)
    else:
        config = _FULL[model].get_config(f"res={arg.res},data={arg.data}")
        config.schedule.epochs = float(epochs)
        options = chosen.options
    with config.unlocked():
        config.model.update(options)
    return config
