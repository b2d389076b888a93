"""Config files named on a command line."""

import sys

import pytest

from lvb.config import flags

QUICKSTART = "configs/quickstart.py"


@pytest.fixture
def config_file(tmp_path):
    """A config file with one leaf and one switch."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from lvb.config import args, schema\n"
        "def get_config(arg=''):\n"
        "    arg = args.parse(arg, res=224)\n"
        "    config = schema.classification()\n"
        "    config.data.image_size = arg.res\n"
        "    return config\n"
    )
    return path


def test_load_passes_the_argument(config_file):
    assert flags.load(str(config_file)).data.image_size == 224
    assert flags.load(f"{config_file}:res=64").data.image_size == 64


def test_a_loaded_config_is_locked(config_file):
    assert flags.load(str(config_file)).is_locked


def test_recipes_are_found_from_any_directory(repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(repo_root)])
    for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    config = flags.load(str(repo_root / "configs" / "lsnet_t.py"))
    assert config.model.name == "lsnet_t"


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"--config=nowhere\.py is no file"):
        flags.load("nowhere.py:smoke")


def test_a_file_without_get_config_is_refused(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no function get_config"):
        flags.load(str(path))


def test_a_file_that_is_not_python_is_refused(tmp_path):
    path = tmp_path / "config.txt"
    path.write_text("seed: 1\n")
    with pytest.raises(ValueError, match="is no Python file"):
        flags.load(str(path))


@pytest.mark.parametrize("spelling", ["--config={}", "--config {}", "-config={}"])
@pytest.mark.parametrize(
    "override",
    [
        "--config.seed=1",
        "--config.optimizer.lr=0.1",
        "--noconfig.ema.warmup",
        "-config.seed=1",
    ],
)
def test_good_overrides_pass(config_file, spelling, override):
    words = spelling.format(config_file).split()
    flags.check_argv(["lvb.train", *words, override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.lrr=1", r"lrr is unknown \(did you mean 'optimizer.lr'"),
        ("--config.optimizer=1", "is a group"),
        ("--config.a[0]=1", "is no name of a leaf"),
        ("--config.=1", "is no name of a leaf"),
        ("--config.__import__('os').abort()=1", "is no name of a leaf"),
        ("--config.seed\n=1", "is no name of a leaf"),
    ],
)
def test_bad_overrides_are_named(config_file, override, message):
    with pytest.raises(ValueError, match=message):
        flags.check_argv(["lvb.train", f"--config={config_file}", override])


def test_without_a_config_there_is_nothing_to_check():
    flags.check_argv(["lvb.train", "--help"])


def test_words_that_belong_to_no_flag_are_refused():
    with pytest.raises(ValueError, match=r"the argument 'a\\\\nb' belongs to no flag"):
        flags.parse(["lvb.train", "a\nb"])


def test_what_the_code_of_a_config_raises_is_one_sentence(config_file):
    config_file.write_text("def get_config(arg=''):\n    return {}['x']\n")
    with pytest.raises(ValueError, match=r"mine\.py cannot be used: KeyError: 'x'\.$"):
        flags.load(str(config_file))


def test_a_path_that_is_none_is_no_file():
    with pytest.raises(ValueError, match=r"is no file; run from"):
        flags.load("x" * 5000)
