"""Which code made a checkpoint."""

import importlib.metadata
import pathlib
import platform
import subprocess

PACKAGES = ("lvb", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The commit of the checkout this runs from, "+" if changed; or "unknown"."""
    folder = pathlib.Path(__file__).resolve().parent
    head = _git(folder, "rev-parse", "HEAD")
    # Installed packages lie in a folder that some other repository may hold.
    tracked = _git(folder, "ls-files", "--", pathlib.Path(__file__).name)
    if not head or not tracked:
        return "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changed else "")


def _git(folder: pathlib.Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
