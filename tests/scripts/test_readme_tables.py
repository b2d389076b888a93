"""The tables of README.md are those that were measured."""

import runpy

import pytest


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "scripts" / "readme_tables.py"))


def test_readme_shows_the_committed_results(repo_root, script):
    results = repo_root / "scripts" / "results"
    tables = {path.stem: path.read_text() for path in results.glob("*.md")}
    assert tables
    readme = (repo_root / "README.md").read_text()
    assert script["with_tables"](readme, tables) == readme


def test_replaces_between_the_marks_only(script):
    text = "a\n<!-- t -->\nold\n<!-- /t -->\nb"
    assert script["with_tables"](text, {"t": "| \\d |"}) == (
        "a\n<!-- t -->\n\n| \\d |\n\n<!-- /t -->\nb"
    )


def test_missing_marks_are_named(script):
    with pytest.raises(ValueError, match="no marks for 't'"):
        script["with_tables"]("a", {"t": "b"})
