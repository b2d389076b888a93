"""What the four papers publish about size: every row of parameters and FLOPs.

Figures are strings as printed, so that their rounding is known; FLOPs are
multiply-adds in all four papers. `options` are the fields of `lvb.create_model` that
build the row; None marks an operator that lvb does not have yet.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One published row.

    Attributes:
      source: paper and table.
      label: the row's name in the paper.
      model: the lvb model it is a form of.
      options: what makes `model` this row, or None.
      params: millions of parameters as printed, or None.
      gmacs: 10^9 multiply-adds as printed, or None.
      image_size: side of the square input, in pixels.
      reason: why ours may differ by more than the printed digits, or "".
    """

    source: str
    label: str
    model: str
    options: Mapping[str, Any] | None
    params: str | None
    gmacs: str | None
    image_size: int = 224
    reason: str = ""


_LSNET_B = (
    "the released LSNet-B has 1.24 G at 224 px and the published 6.2 G at 512 px: "
    "1.3 does not follow from the architecture"
)
_LSNET_ABLATIONS = (
    "counted on the released network, which is within 0.01 G of the printed digits"
)
_FVNET_LIMIT = (
    "no rule with non-negative costs fits all published sizes of FVNet to rounding"
)
_FMVIT_LIMIT = "widths and depths are fitted to ten rounded numbers; no code exists"
_FMVIT_T0 = "the widths and depths of FMViT-T0 are not published"
_CONVNEUR_COUNTER = (
    "the authors' counter also counts norms, biases and activations, 1 to 2 %"
)


def _convneur_size(variant: str, params: str, gmacs: str) -> Row:
    model = f"convneur_{variant.lower()}"
    row = Row("ConvNeur Table 2", variant, model, {}, params, gmacs)
    return row._replace(reason=_CONVNEUR_COUNTER)


# The 15 models, 224 px.
VARIANTS = (
    _convneur_size("M1", "4.3", "0.71"),
    _convneur_size("M2", "6.1", "1.01"),
    _convneur_size("M3", "10.6", "1.77"),
    _convneur_size("M4", "18.1", "3.06"),
    Row("FMViT Table 2", "T", "fmvit_t", {}, "2.0", "0.3"),
    Row("FMViT Table 2", "S", "fmvit_s", {}, "6.4", "0.8", reason=_FMVIT_LIMIT),
    Row("FMViT Table 2", "M", "fmvit_m", {}, "12.8", "2.0", reason=_FMVIT_LIMIT),
    Row("FMViT Table 2", "B", "fmvit_b", {}, "24.3", "4.2", reason=_FMVIT_LIMIT),
    Row("FMViT Table 2", "L", "fmvit_l", {}, "35.3", "7.1", reason=_FMVIT_LIMIT),
    Row("FVNet Table 1", "N", "fvnet_n", {}, "1.2", "0.2"),
    Row("FVNet Table 1", "T", "fvnet_t", {}, "3.1", "0.4"),
    Row("FVNet Table 1", "S", "fvnet_s", {}, "6.8", "1.1"),
    Row("LSNet Table 1", "T", "lsnet_t", {}, "11.4", "0.3"),
    Row("LSNet Table 1", "S", "lsnet_s", {}, "16.1", "0.5"),
    Row("LSNet Table 1", "B", "lsnet_b", {}, "23.2", "1.3", reason=_LSNET_B),
)

# The same networks on larger images.
LARGE_IMAGES = (
    Row("LSNet Tables 2, 3", "T", "lsnet_t", {}, None, "1.5", 512),
    Row("LSNet Tables 2, 3", "S", "lsnet_s", {}, None, "2.6", 512),
    Row("LSNet Tables 2, 3", "B", "lsnet_b", {}, None, "6.2", 512),
    Row("FVNet Table 3", "N", "fvnet_n", {}, None, "1.0", 512),
    Row("FVNet Table 3", "T", "fvnet_t", {}, None, "2.2", 512, _FVNET_LIMIT),
    Row("FVNet Table 3", "S", "fvnet_s", {}, None, "5.6", 512),
    Row("FMViT Table 4", "B", "fmvit_b", {}, "24.8", "22.2", 512, _FMVIT_LIMIT),
    Row("FMViT Table 4", "L", "fmvit_l", {}, "36.5", "37.4", 512, _FMVIT_LIMIT),
)


def _lsnet(table: str, label: str, gmacs: str, options: Any = None) -> Row:
    row = Row(f"LSNet Table {table}", label, "lsnet_t", options, None, gmacs)
    return row._replace(reason=_LSNET_ABLATIONS)


def _fvnet(table: str, label: str, options: Any = None) -> Row:
    return Row(f"FVNet Table {table}", label, "fvnet_t", options, None, "0.4")


def _convneur(label: str, gmacs: str, options: Any = None) -> Row:
    row = Row("ConvNeur Table 5", label, "convneur_m3", options, None, gmacs)
    return row._replace(reason=_CONVNEUR_COUNTER)


def _fmvit(label: str, params: str, gmacs: str, options: Mapping[str, Any]) -> Row:
    options = {"depths": (3, 1, 2, 1), **options}
    return Row(
        "FMViT Table 5", label, "fmvit_t", options, params, gmacs, reason=_FMVIT_T0
    )


ABLATIONS = (
    _lsnet("5", "LSNet-T", "0.31", {}),
    _lsnet("5", "w/o LS conv", "0.29", {"token_mixer": "identity"}),
    _lsnet("5", "(S)W-SA", "0.36"),
    _lsnet("5", "SDTA", "0.37"),
    _lsnet("5", "LSRA", "0.37"),
    _lsnet("5", "RepMixer", "0.29"),
    _lsnet("5", "CGA", "0.32"),
    _lsnet("5", "AFF", "0.30"),
    _lsnet("6", "CondConv", "0.29"),
    _lsnet("6", "DY-Conv", "0.29"),
    _lsnet("6", "Involution", "0.31"),
    _lsnet("6", "DCD", "0.29"),
    _lsnet("6", "CoT", "0.37"),
    _lsnet("6", "ODConv", "0.29"),
    _lsnet("7", "w/o LKP", "0.31", {"perceive": False}),
    _lsnet("7", "K_L=3", "0.31", {"ls_kernel_size": 3}),
    _lsnet("7", "K_L=5", "0.31", {"ls_kernel_size": 5}),
    _lsnet("7", "K_L=9", "0.32", {"ls_kernel_size": 9}),
    _lsnet("7", "w/o SKA", "0.31", {"aggregate": False}),
    _lsnet("7", "K_S=1", "0.30", {"small_kernel": 1}),
    _lsnet("7", "K_S=5", "0.34", {"small_kernel": 5}),
    _lsnet("8", "C/G=1", "0.38", {"group_width": 1}),
    _lsnet("8", "C/G=4", "0.33", {"group_width": 4}),
    _lsnet("8", "C/G=16", "0.31", {"group_width": 16}),
    _lsnet("8", "C/G=32", "0.31", {"group_width": 32}),
    _lsnet("8", "w/o DW", "0.31", {"local_mixer": "identity"}),
    _lsnet("8", "w/o SE", "0.31", {"squeeze_excite": False}),
    _fvnet("6", "DWConv", {"token_mixer": "depthwise"}),
    _fvnet("6", "DY-Conv"),
    _fvnet("6", "Involution"),
    _fvnet("6", "MBConv"),
    _fvnet("6", "PConv"),
    _fvnet("6", "LSConv"),
    _fvnet("6", "FTFU", {}),
    _fvnet("6", "No Stage", {"mpfb_stages": (), "mhsa_stages": ()}),
    _fvnet("6", "+Stage1", {"mpfb_stages": (1,), "mhsa_stages": ()}),
    _fvnet("6", "+Stage2", {"mpfb_stages": (1, 2), "mhsa_stages": ()}),
    _fvnet("6", "+Stage3, w/o MHSA", {"mhsa_stages": ()}),
    _fvnet("6", "w/o GAP", {"use_gap": False}),
    _fvnet("7", "Average", {"fusion": "average"}),
    _fvnet("7", "Concat", {"fusion": "concat"}),
    _fvnet("7", "SE-based", {"fusion": "se"}),
    _fvnet("7", "Linear", {"gate_activation": "linear"}),
    _fvnet("7", "ReLU", {"gate_activation": "relu"}),
    _fvnet("7", "Sigmoid", {"gate_activation": "sigmoid"}),
    _convneur("Local-only", "1.4", {"memory_at": "none"}),
    _convneur("Per-stage", "1.8", {}),
    _convneur("Per-layer", "2.3", {"memory_at": "every_block"}),
    _convneur("CBAM", "1.5", {"global_branch": "cbam"}),
    _convneur("Non-local", "3.0", {"global_branch": "nonlocal"}),
    _convneur("Self Attention", "1.8", {"global_branch": "attention"}),
    _convneur("IR-RWKV", "2.0"),
    _convneur("Titans", "3.1"),
    _convneur("Addition", "1.8", {"fusion": "add"}),
    _convneur("Concatenate", "1.9", {"fusion": "concat"}),
    _convneur("C_m 64", "1.5", {"memory_width": 64}),
    _convneur("C_m 256", "2.7", {"memory_width": 256}),
    _fmvit(
        "MHSA, MLP",
        "2.61",
        "0.47924",
        {"attention": "mhsa", "channel_mixer": "mlp", "mix_frequencies": False},
    ),
    _fmvit(
        "RLMHSA",
        "2.25",
        "0.33805",
        {"channel_mixer": "mlp", "mix_frequencies": False},
    ),
    _fmvit("RLMHSA, gMLP", "2.25", "0.33805", {"mix_frequencies": False}),
    _fmvit("RLMHSA, gMLP, FMB", "2.52", "0.39530", {}),
)


def within_rounding(value: float, printed: str) -> bool:
    """Whether `value` rounds to the digits that a paper prints.

    Args:
      value: in the unit of the print.
      printed: a decimal number, such as "11.4".
    """
    decimals = len(printed.partition(".")[2])
    # A half in the last place either way, as papers round both up and down.
    return abs(value - float(printed)) <= 0.5 * 10**-decimals + 1e-9
