"""Settings of every test: eight CPU devices, strict ranks, a compilation cache."""

import os
import pathlib
from collections.abc import Iterator

# Before JAX starts: a mesh of eight devices on any machine.
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count=8"
_ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402 - the environment above must come first
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the fast tests quickly: they compile a lot and compute little."""
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # Of child processes.
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def _compile_networks_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Slow tests of whole networks compile for minutes and compute for seconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    if request.path.parent.name == "models":
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
    """The root of the checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of small real data sets; a test that needs it skips without."""
    path = pathlib.Path(
        os.environ.get("LVB_SHARED_DATA", _ROOT.parent / "shared" / "data")
    )
    if not path.is_dir():
        pytest.skip(f"no real data at {path.name}: set LVB_SHARED_DATA to its folder")
    return path
