"""Rooms import only the rooms below them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What each room of lvb may import from the others.
ALLOWED = {
    "ops": set(),
    "data": set(),
    "config": set(),
    "layers": {"ops"},
    "losses": {"ops"},
    "metrics": {"ops"},
    "training": {"ops"},
    "analysis": {"ops"},
    "models": {"ops", "layers"},
    "heads": {"ops", "layers"},
    "tasks": {"ops", "heads", "losses", "metrics"},
}


def imported_rooms(path):
    """The rooms of lvb that a file imports, at the top or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "lvb" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


def test_every_room_is_listed():
    rooms = {p.parent.name for p in (ROOT / "lvb").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_it_may(room):
    for path in (ROOT / "lvb" / room).rglob("*.py"):
        extra = imported_rooms(path) - ALLOWED[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_configs_import_only_the_config_room():
    for path in (ROOT / "configs").rglob("*.py"):
        extra = imported_rooms(path) - {"config"}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_the_check_sees_an_import(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("def f():\n    from lvb.models import lsnet\n")
    assert imported_rooms(path) == {"models"}
