"""Each test has its own home folders; the loopback Hub is the only address that answers."""

import gc
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from medvllm.catalog import StoredCatalog, stores
from medvllm.catalog.sql import SqlStore
from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner import registry as engine_registry
from medvllm.files import make_own, make_own_file
from medvllm.model_registry.loaded_models import LoadedModels
from medvllm.processes import publisher
from tests.support import warm
from tests.support.clock import HurriedClock, hurry
from tests.support.loopback import LoopbackHub
from tests.support.postgres import Postgres, programs
from tests.support.skips import pytest_addoption, pytest_sessionfinish  # noqa: F401, they are hooks

if TYPE_CHECKING:
    from tests.support.exports import Exports

gc.disable()  # until the tests are collected: what they import stays

# Read by huggingface_hub once, at import: one Hub and one cache root serve the whole run.
_hub = LoopbackHub()
_hub_home = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="medvllm-hf-home-")
os.environ["HF_ENDPOINT"] = _hub.url
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.startswith("MEDVLLM_")]:
    del os.environ[_name]


def _loopback_only(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        host = arguments[1][0]
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test opened a connection to {host}")


sys.addaudithook(_loopback_only)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a time limit of their own take long, and come first. At the end, one of them would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_unconfigure() -> None:
    shutil.rmtree(_hub_home, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _session_home() -> Iterator[None]:
    import torch

    # Two threads on two busy cores are slower than one.
    torch.set_num_threads(1)
    with _hub:
        yield
    warm.stop()


_modules = 0  # how many had been imported when what they hold was last set aside


def _set_aside() -> None:
    """What was imported is no work for the collector, which each eviction asks to look at everything."""
    global _modules
    if len(sys.modules) != _modules:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _imported(_session_home: None) -> None:
    importlib.import_module("transformers.models.auto.modeling_auto")
    _set_aside()


@pytest.fixture(scope="session")
def shared_exports(_session_home: None, tmp_path_factory: pytest.TempPathFactory) -> "Exports":
    """Exports for engines, each made once for all workers."""
    from tests.support.exports import Exports

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    shared.mkdir(exist_ok=True)
    return Exports(shared)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the main thread, as in a program. A shell starts jobs that ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def engine_home(home: Path) -> Path:
    """MEDVLLM_HOME, which exists."""
    folder = home / "medvllm"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def session_hub(_session_home: None) -> LoopbackHub:
    """The Hub with what other tests have added to it, for tests that start processes."""
    return _hub


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, and a working directory in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MEDVLLM_HOME", str(folder / "medvllm"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(folder / "medvllm.lock"))
    return folder


@pytest.fixture(autouse=True)
def _closed(home: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a database open, or models in memory, whose record would be written into the next test's home."""
    yield
    for value in getattr(getattr(request.node, "callspec", None), "params", {}).values():
        if isinstance(value, BaseException):
            value.__traceback__ = None  # an error that is a parameter lives on, and its frames hold models
    if len(engine_registry._model_cache):
        engine_registry.clear_cache()
    if holders := list(publisher.holders()):
        for holder in holders:
            cast(LoadedModels, holder).evict(None)
        del holder, holders
        gc.collect()
    stores.close_all()
    _set_aside()


@pytest.fixture(scope="session")
def trained(_session_home: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that tests/support/trained.py trains, once for all workers."""
    from tests.support.trained import trained_models  # imports huggingface_hub, for which HF_ENDPOINT must be set

    base = tmp_path_factory.getbasetemp()
    return trained_models(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the session's own, started when it is first asked for."""
    found = programs()
    if found is None:
        pytest.skip("there is no PostgreSQL on this machine; install it as root: make system")
    with Postgres(found) as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres: Postgres) -> Iterator[str]:
    """A database with an empty catalogue, to copy."""
    with postgres.database() as url:
        StoredCatalog(url).migrate()
        stores.close_all()
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def _template_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with an empty catalogue, to copy."""
    file = tmp_path_factory.mktemp("catalog") / "catalog.db"
    SqlStore(file).database.migrate()  # it closes the file, so that the log beside it is gone
    return file.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The stored catalogue of each kind in turn, empty; also that of the processes that the test starts."""
    if request.param == "sqlite":
        file = home / "medvllm" / "catalog.db"
        make_own(file.parent)
        make_own_file(file)
        file.write_bytes(request.getfixturevalue("_template_file"))
        yield f"sqlite:///{file}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database(request.getfixturevalue("_template")) as url:
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        yield url


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty loopback Hub with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    _hub.clear()
    yield _hub
    _hub.heal()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> HurriedClock:
    """The clock of what fetches and hashes files: the waits between two tries take no time."""
    importlib.import_module("huggingface_hub.file_download")
    importlib.import_module("medvllm.sources")
    return hurry(monkeypatch, "huggingface_hub", "medvllm.sources")


@pytest.fixture
def registry(home: Path) -> Iterator[ModelRegistry]:
    """A registry of the test's own."""
    own = ModelRegistry()
    yield own
    own.clear_cache()


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray writes. The names of its sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
