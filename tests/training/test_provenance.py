"""Which code made a checkpoint."""

import pathlib
import re
import shutil
import subprocess

import pytest

from lvb.training import provenance


def test_versions_name_what_decides_numbers():
    versions = provenance.versions()
    assert set(versions) == {"python", *provenance.PACKAGES}
    assert re.match(r"\d+\.\d+", versions["jax"])


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one file, which stands for this package's."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    path = tmp_path / "provenance.py"
    path.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return path


def git(path: pathlib.Path, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(
        ["git", *identity, *arguments], cwd=path.parent, check=True, capture_output=True
    )


def test_the_commit_and_whether_it_was_changed(checkout):
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    clean = provenance.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    checkout.write_text("x = 2\n")
    assert provenance.commit() == f"{clean}+"


def test_someone_elses_repository_says_nothing(checkout):
    git(checkout, "init")
    git(checkout, "commit", "--allow-empty", "-m", "first")
    assert provenance.commit() == "unknown"


def test_without_git_it_is_unknown(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"
