"""Command lines of `python -m lvb.train` that no one would write on purpose."""

import numpy as np

from lvb.config import flags, names

# A config with every leaf of a family's recipe and a network that traces in a second.
CONFIG = """
import importlib

import small_models
from lvb.config import args

MODELS = dict(lsnet="lsnet_t", convneur="convneur_m1", fvnet="fvnet_n", fmvit="fmvit_t")
DEPTHS = dict(
    lsnet=(0, 0, 2, 1), convneur=(0, 0, 0, 1), fvnet=(1, 0, 0, 1), fmvit=(0, 1, 0, 0)
)


def get_config(arg=""):
    arg = args.parse(arg, family="lsnet", res=32, smoke=False)
    if arg.family not in MODELS:
        raise ValueError(f"family={arg.family!r} is unknown.")
    recipe = importlib.import_module(f"configs.recipes.{arg.family}_300ep")
    config = recipe.get_config(smoke=True)
    config.model.name = MODELS[arg.family]
    with config.unlocked():
        config.model.update(small_models.SMALL[config.model.name])
        config.model.depths = DEPTHS[arg.family]
    config.data.image_size = arg.res
    return config
"""
FAMILIES = ("lsnet", "convneur", "fvnet", "fmvit")

# Arguments behind the colon of configs/, whole before they are spoilt.
ARGUMENTS = (
    ("quickstart.py", "model=fvnet_n"),
    ("lsnet_t.py", "smoke,res=160"),
    ("lsnet_t.py", "data=folder:/pictures,distill=W"),
    ("convneur_m3.py", "smoke"),
    ("fmvit_t.py", "res=192"),
    ("finetune_folder.py", "data=folder:/p,checkpoint=W,freeze=stem+stage2"),
    ("fashion_mnist_distill.py", "role=student,kind=soft,teacher=W"),
    ("ablations/lsnet_table7.py", "row=kl3,smoke"),
    ("ablations/convneur_table5.py", "row=cbam"),
)


def code(canary):
    """Texts that leave the file `canary` behind when anything evaluates them."""
    call = f"__import__('os').system('touch {canary}')"
    return (
        call,
        f"({call},)",
        f"[{call} for _ in range(4)]",
        f"(lambda: open('{canary}', 'w'))()",
        f"exec(\"open('{canary}', 'w')\")",
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"; touch {canary}",
        f"x | tee {canary}",
        f"{{{call}: 1}}",
        f"f'{{{call}}}'",
        f"!!python/object/apply:os.system ['touch {canary}']",
    )


NUMBERS = (
    *("0", "-1", "1", "7", "-0.0", "1e400", "-1e400", "nan", "-nan", "inf", "-inf"),
    *("1_000", "0x10", "1e-400", "2147483648", "4294967296", "18446744073709551616"),
    *(
        "9" * 40,
        "9" * 400,
        "9" * 5000,
        "1e38",
        "3e38",
        "0.5",
        "1.0",
        "\u0663",
        "\u00bd",
    ),
)
TUPLES = (
    *("()", "(1,)", "(1, 1)", "(16,) * 4", "(16, 16, 16, 16, 16)", "((16, 16), 16)"),
    *("((((16,),),),)", "('a', 'b', 'c', 'd')", "(None, None, None, None)", "(1, 2"),
    *("1,1,1,1", "[16, 16, 16, 16]", "{1: 2, 3: 4}", "{'a': 1}", "{1, 2}", "b'abcd'"),
    *("(1j, 1j, 1j, 1j)", "(True, True, True, True)", "(0.5, 0.5, 0.5, 0.5)"),
    *("(1e309, 1, 1, 1)", "(-1, -1, -1, -1)", "(0, 0, 0, 0)", "(0.9, 0.1)", "(1, 0)"),
    *("(1000000000, 1, 1, 1)", "(16, 16, 16, 17)", "('0.5', '0.5')", "...", "(...,)"),
    *("[[[[]]]]", "{}", "{[]: 1}", "(" * 150 + ")" * 150, "(" * 5000, "-" * 9000 + "1"),
)
WORDS = (
    *("", " ", "None", "none", "True", "float64", "int8", "complex64", "object", "U4"),
    *("bfloat16", "float16", "lsnet_q", "lsnet_t ", "LSNET_T", "digits", "digits:x"),
    *("synthetic", "folder:", "folder:/dev/null", "folder:nowhere", "tfds:", "tfds:.."),
    *("tfds:a/b/c:1:2", "fashion_mnist", "/dev/null", "/dev/zero", "../../etc/passwd"),
    *("/proc/self/mem", "a\nb", "a\r\nb", "\t", "a=b", "a,b", "backbone=0.1", "=", ","),
    *("backbone=nan", "head=0,head=1", "rand-m9-n99999999", "rand-m1e9", "rand--", "+"),
    *(
        "jitter1e9",
        "jitter999999999",
        "three+three",
        "%s%n%d",
        "{0}",
        "\x1b[2J",
        "\x7f",
    ),
    *(
        "\u202etxt",
        "\U0001f4a5",
        "\udcff\udcfe",
        "\u00e9" * 300,
        "A" * 100_000,
        "'" * 50,
    ),
    *("'\"", "\\", "\\x00", "#", "--", "--config.seed=1", "hard", "soft", "agc", "ema"),
)


def leaves(path):
    """The leaves of a config and their values."""
    return names.flatten(flags.load(path).to_dict())


class Generator:
    """Draws command lines; the same ones from the same seed."""

    def __init__(self, *, seed, config, configs, canary):
        """Prepares the drawing.

        Args:
          seed: of all that is drawn.
          config: path of a file with the text `CONFIG`.
          configs: the folder `configs/`.
          canary: name of a file that code in an argument would make.
        """
        self._rng = np.random.default_rng(seed)
        self._config, self._configs = config, configs
        self._code = code(canary)
        self._leaves = {f: leaves(f"{config}:family={f}") for f in FAMILIES}

    def draw(self):
        """Returns what is attacked, and the words behind `python -m lvb.train`."""
        kind = self._rng.choice(["leaf", "pair", "argument", "key", "path"], p=_ODDS)
        return getattr(self, f"_{kind}")()

    def _one(self, options):
        return options[self._rng.integers(len(options))]

    def _family(self):
        return self._one(FAMILIES)

    def _leaf(self):
        family = self._family()
        name, value = self._override(family)
        return name, [self.base(family), f"--config.{name}={value}"]

    def _pair(self):
        """Two leaves, or one leaf twice."""
        family = self._family()
        words = []
        for _ in range(2):
            name, value = self._override(family)
            words.append(f"--config.{name}={value}")
        if self._rng.random() < 0.3:
            words.append(words[0].split("=")[0] + "=" + self._value(None))
        return name, [self.base(family), *words]

    def _argument(self):
        file, arg = self._one(ARGUMENTS)
        if self._rng.random() < 0.5:
            arg = self._mutate(arg)
        else:
            key = self._one(["res", "smoke", "data", "model", "row", "kind", "x", ""])
            arg = f"{arg},{key}={self._value(None)}"
        return "argument", [f"--config={self._configs / file}:{arg}"]

    def _key(self):
        family = self._family()
        name = self._one(list(self._leaves[family]))
        wrong = self._one(
            [
                self._mutate(name),
                name.split(".")[0],
                f"{name}.x",
                f"{name}[0]",
                f"{name}.__class__",
                "__class__",
                "model.__init__",
                "update",
                self._one(self._code),
                "\u00e9",
                "",
            ]
        )
        sign = self._one(
            ["--config.", "-config.", "--noconfig.", "--config", "--Config."]
        )
        return "key", [self.base(family), f"{sign}{wrong}={self._value(None)}"]

    def _path(self):
        path = self._one(
            [
                self._mutate(str(self._config)),
                f"{self._config}\n:smoke",
                str(self._configs),
                "/dev/null",
                "/dev/zero",
                "/proc/self/mem",
                "",
                ":",
                "::",
                "\udcff.py",
                "x" * 5000,
                self._one(self._code),
                str(self._configs / "README.md"),
            ]
        )
        return "path", [f"--config={path}"]

    def base(self, family):
        """The word that names the config of a family."""
        return f"--config={self._config}:family={family}"

    def _override(self, family):
        known = self._leaves[family]
        # Half of the leaves are the model's or the data's, where most can go wrong.
        name = self._one(list(known))
        return name, self._value(known[name])

    def _value(self, value):
        """Text for a leaf with this value; of its own kind, or of any other."""
        draw = self._rng.random()
        if draw < 0.08:
            return self._one(self._code)
        if draw < 0.25 and value is not None:
            return self._mutate(str(value))
        if draw < 0.35:
            return self._one(NUMBERS + TUPLES + WORDS)
        if isinstance(value, list):
            return self._one(TUPLES)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._one(NUMBERS)
        return self._one(WORDS)

    def _mutate(self, text):
        """Swaps, doubles, drops or inserts a few characters."""
        letters = list(text)
        for _ in range(self._rng.integers(1, 4)):
            at = int(self._rng.integers(len(letters) + 1))
            match self._rng.integers(4):
                case 0:
                    letters[at:at] = self._one("0123456789-.,:=()[]'\" \n_xeE/\u00e9")
                case 1:
                    del letters[at : at + 1]
                case 2:
                    letters[at:at] = letters[max(at - 3, 0) : at]
                case 3:
                    letters[at : at + 2] = letters[at : at + 2][::-1]
        return "".join(letters)


_ODDS = (0.6, 0.15, 0.12, 0.08, 0.05)
