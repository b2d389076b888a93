"""The folder of a run."""

import os
import subprocess
import sys

import pytest

from lvb.config import names
from lvb.training import workdir

CONFIG = {"seed": 0, "optimizer": {"lr": 0.1}, "checkpoint": {"keep_last": 2}}


@pytest.fixture
def folder(tmp_path):
    with workdir.Workdir(tmp_path / "a" / "run") as folder:
        folder.save_config(CONFIG)
        yield folder


def test_a_new_folder_is_made(folder):
    assert folder.path.is_dir()
    assert not folder.continued
    assert folder.saved_config() == CONFIG


def test_an_old_one_is_continued(folder):
    folder.close()
    with workdir.Workdir(folder.path) as again:
        assert again.continued
        assert again.check_config(CONFIG, diff=names.diff) == []


def test_another_config_is_refused_with_the_difference(folder):
    other = {**CONFIG, "seed": 1, "optimizer": {"lr": 0.2}}
    with pytest.raises(ValueError, match="another config") as error:
        folder.check_config(other, diff=names.diff)
    assert str(error.value).endswith("\n  optimizer.lr: 0.1 -> 0.2\n  seed: 0 -> 1")


def test_some_leaves_may_differ(folder):
    other = {**CONFIG, "checkpoint": {"keep_last": 5}}
    changes = folder.check_config(other, diff=names.diff, may_differ=("checkpoint",))
    assert changes == ["checkpoint.keep_last: 2 -> 5"]
    with pytest.raises(ValueError, match="checkpoint"):
        folder.check_config(other, diff=names.diff, may_differ=("check",))


def test_a_damaged_config_is_told(folder):
    (folder.path / workdir.CONFIG).write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        folder.saved_config()


def test_a_second_process_is_refused_until_the_first_ends(folder):
    code = (
        "import sys; from lvb.training import workdir\n"
        "try: workdir.Workdir(sys.argv[1])\n"
        "except ValueError as error: sys.exit(str(error))\n"
    )

    def open_elsewhere():
        return subprocess.run(
            [sys.executable, "-c", code, str(folder.path)],
            capture_output=True,
            text=True,
            check=False,
        )

    refused = open_elsewhere()
    assert refused.returncode == 1
    assert f"is in use by process {os.getpid()} on" in refused.stderr
    folder.close()
    assert open_elsewhere().returncode == 0


def test_hosts_that_do_not_write_need_no_lock(folder):
    with workdir.Workdir(folder.path, writes=False) as other:
        assert other.continued


@pytest.mark.parametrize("tail", ["", "below"])
def test_a_file_in_the_way_is_told(tmp_path, tail):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written \((File|Not)"):
        workdir.Workdir(path / tail)
