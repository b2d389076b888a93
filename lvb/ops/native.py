"""Programs in C++ for CPUs, compiled where they run, and handed to XLA.

A few operators have a form that XLA's own operations cannot express. Its sources lie
beside the operator and are compiled at first use by the machine's C++ compiler, for its
very processor, in some ten seconds; the library is kept in the user's cache folder.
Where there is no compiler, or LVB_NATIVE=0 is set, operators take their other forms.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import jax

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast")
_FLAGS += ("-fPIC", "-shared")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300  # For a compiler on a busy machine.


@functools.cache
def load(source: pathlib.Path, handlers: tuple[str, ...]) -> bool:
    """Compiles a program, or takes it from the cache, and registers its handlers.

    Args:
      source: a file; the headers it includes lie beside it.
      handlers: XLA FFI handlers that it defines, to be targets of `jax.ffi.ffi_call`.

    Returns:
      Whether they can be called; if not, a warning has said why, once.
    """
    if os.environ.get("LVB_NATIVE") == "0":
        return False
    try:
        library = ctypes.CDLL(str(_built(source)))
        for name in handlers:
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "%s is not compiled (%s); the slower form in XLA takes its place. "
            "LVB_NATIVE=0 leaves it out without a word.",
            source.name,
            _reason(error),
        )
        return False
    return True


def _built(source: pathlib.Path) -> pathlib.Path:
    """The library of a source, compiled unless it lies in the cache."""
    compiler = _compiler()
    library = _folder() / f"{source.stem}-{_digest(source, compiler)}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = pathlib.Path(folder, library.name)
            subprocess.run(
                [*compiler, str(source), "-o", str(fresh)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            fresh.replace(library)  # Whole, whoever else compiles it just now.
    return library


def _compiler() -> Sequence[str]:
    """The command that compiles, $CXX before the usual names.

    Raises:
      FileNotFoundError: if there is none.
    """
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    for name in names:
        path = shutil.which(name)
        if path:
            return (path, *_FLAGS, f"-I{jax.ffi.include_dir()}")
    raise FileNotFoundError(f"no C++ compiler: none of {', '.join(names)}")


def _digest(source: pathlib.Path, compiler: Sequence[str]) -> str:
    """Of all that the library depends on; homes are shared by unlike machines."""
    parts = [" ".join(compiler), jax.__version__, platform.machine(), _features()]
    parts += [path.read_text() for path in sorted(source.parent.glob("*.h"))]
    parts.append(source.read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _features() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x for x in lines if x.lower().startswith(("flags", "features"))), "")


def _folder() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "lvb", "native")


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [x for x in error.stderr.splitlines() if "error" in x] or [str(error)]
        return lines[0].strip()
    return str(error)
