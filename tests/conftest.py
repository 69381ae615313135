"""What every test stands on: no network, a store of its own, a clean log, undisturbed random state.

Knows nothing of any stage; what a package's tests share beyond this stands beside them.
"""

import atexit
import contextlib
import gc
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUTS = (ROOT / "penstock-out", ROOT / "penstock-index")

# Before anything imports the libraries that read them, and inherited by every child.
os.environ.update(
    HF_HUB_OFFLINE="1",
    ORT_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)
# A test must not run on the server, the store or the settings of whoever calls it.
for _name in [name for name in os.environ if name.startswith(("PREFECT_API", "PENSTOCK_"))]:
    if not _name.startswith("PENSTOCK_TEST_"):
        del os.environ[_name]
if "PYTEST_XDIST_WORKER" in os.environ:  # or the workers' threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
# Who starts the tests in the background, or under nohup, hands down signals that are ignored.
for _number, _as_usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _as_usual)
# Of the attacks that are drawn at random; the workers of one test run inherit it.
os.environ.setdefault("PENSTOCK_TEST_SEED", str(random.randrange(1 << 32)))


LONG = (
    "project/test_deployment_check.py",
    "processes/test_learning_kills.py",
    "project/test_gpu_check_whole.py",
    "commands/test_export.py",
    "processes/test_running_kills.py",
    "rooms/flows/execution/test_sequence.py",
    "rooms/stages/decode/engines/inflight/test_pool.py",
    "rooms/stages/decode/test_run.py",
    "rooms/stages/decode/engines/inflight/test_engine.py",
    "rooms/stages/models/precision/test_precision.py",
    "families/test_families.py",
    "commands/test_graphs.py",
    "rooms/flows/interfaces/prefect/test_caption.py",
    "rooms/flows/core/job/test_pass_mode.py",
    "attacks/test_penstock_start.py",
    "attacks/test_not_finite.py",
    "attacks/test_models_folder_files.py",
    "rooms/flows/core/job/test_away.py",
    "attacks/test_outputs_odd_disks.py",
    "rooms/flows/execution/test_waves.py",
    "attacks/test_frames_damage.py",
)
"""Files with the longest tests, which are begun first: last, one worker would wait for them."""


def pytest_configure(config: pytest.Config) -> None:
    """In front of several workers, keep a process from which their fork servers are forked."""
    if not getattr(config.option, "numprocesses", None):
        return
    from scripts.run.warm import HOOK, warm_process

    kept = contextlib.ExitStack()
    config.add_cleanup(kept.close)
    place = kept.enter_context(tempfile.TemporaryDirectory(prefix="penstock-warm-"))
    # Python imports a module of this name at its start, where its folder is on the path.
    Path(place, "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    os.environ["PYTHONPATH"] = place
    # The workers inherit what leads there.
    os.environ.update(kept.enter_context(warm_process(Path(place), OMP_NUM_THREADS="1")))


gc.disable()  # until all is collected: a quarter of the time of importing it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by how long tests take."""
    gc.enable()
    rank = {ROOT / "tests" / name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What brings the same attacks back; at the end, because `-q` leaves out the head."""
    terminalreporter.write_line(f"PENSTOCK_TEST_SEED={os.environ['PENSTOCK_TEST_SEED']}")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the program and Prefect remember about this machine goes to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        prefect = tmp_path_factory.mktemp("prefect")
        patch.setenv("PREFECT_HOME", str(prefect))
        patch.setenv("PREFECT_PROFILES_PATH", str(prefect / "profiles.toml"))
        yield


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """Undo what an encoder of AV1 does to the process that uses it as root: it would go before all
    others from then on, and so would every browser that it starts."""
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(autouse=True)
def imports_spared(request: pytest.FixtureRequest) -> None:
    """Keep what is imported, collected and cached out of garbage collections: the stages allocate
    much, and looking through all of torch, transformers and the tests took most of their time."""
    now = (request.path, len(sys.modules) // 100)
    if now != SPARED[-1]:
        gc.collect()
        gc.freeze()
        SPARED.append(now)


SPARED: list[tuple[Path, int]] = [(ROOT, 0)]
"""The test files, and the hundreds of modules loaded, at which what is there was spared."""
atexit.register(gc.unfreeze)  # or some of what is imported calls itself leaked


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that names no store gets an empty one, never the user's."""
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "store"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with two of the demo's clips in `videos`."""
    from penstock_demo import CLIPS

    (tmp_path / "videos").mkdir()
    for name in ("clip-01.mp4", "clip-02.mp4"):
        shutil.copy(CLIPS / name, tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser with a profile of its own."""
    from tests.support.browser import browsing

    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def empty_console(request: pytest.FixtureRequest) -> None:
    """A browser's console has nothing of the pages of other tests."""
    if "browser" in request.fixturenames:
        request.getfixturevalue("browser").console()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Any]:
    """A studio at an empty folder."""
    from tests.support.studios import OpenStudio

    (tmp_path / "empty").mkdir()
    opened = OpenStudio(tmp_path / "empty", tmp_path / "out", tmp_path / "store").start()
    yield opened
    if opened.process is not None and opened.process.poll() is None:
        opened.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def bucket_port() -> Iterator[int]:
    """The port of a server that speaks S3."""
    from tests.support.buckets import bucket_server

    with bucket_server() as port:
        yield port


@pytest.fixture
def bucket_address(
    bucket_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A place in a bucket for one test, and an environment that leads there."""
    from tests.support.buckets import environment

    yield f"s3://{_place(environment(bucket_port), tmp_path, monkeypatch)}"


def _place(variables: Mapping[str, str], folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Lead the program to a service with these variables alone; return a new place there."""
    from tests.support.buckets import BUCKET, variables_of_services

    for name in variables_of_services():
        patch.delenv(name)
    for name, value in variables.items():
        patch.setenv(name, value)
    patch.setenv("PENSTOCK_NEARBY", str(folder / "nearby"))
    return f"{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def twelve_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips for whole runs on buckets and servers."""
    from penstock_demo.clips import write_clips
    from tests.support.buckets import CLIPS

    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, CLIPS, seed=1)
    return folder


@pytest.fixture(scope="session")
def azure_port() -> Iterator[int]:
    """The port of a server that speaks Azure's protocol."""
    from tests.support.azure import azure_server, azurite

    command = azurite()
    if command is None:
        pytest.skip("azurite is not installed; PENSTOCK_TEST_AZURITE names its command")
    with azure_server(command) as port:
        yield port


@pytest.fixture
def azure_address(
    azure_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A place in a container for one test, and an environment that leads there."""
    from tests.support.azure import azure_environment

    yield f"az://{_place(azure_environment(azure_port), tmp_path, monkeypatch)}"


@pytest.fixture
def way(bucket_address: str, bucket_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What stands between the program and that server, `Between`."""
    from tests.support.buckets import between

    with between(bucket_port) as state:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{state.port}")
        yield state


@pytest.fixture(autouse=True)
def no_errors_logged(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """An ERROR in the log that no assertion looks at would pass unseen."""
    yield
    if request.node.get_closest_marker("logs_errors"):
        return
    errors = [
        f"{record.name}: {record.getMessage()}"
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.ERROR
    ]
    if errors:
        pytest.fail("logged at ERROR:\n" + "\n".join(errors), pytrace=False)


@pytest.fixture(autouse=True)
def no_outputs_in_the_repository() -> Iterator[None]:
    """A test that runs a command without --out must run it in a folder of its own."""
    before = [folder for folder in DEFAULT_OUTPUTS if folder.exists()]
    yield
    left = [folder for folder in DEFAULT_OUTPUTS if folder.exists() and folder not in before]
    assert not left, f"the test, or one beside it, wrote into {left[0]}"


@pytest.fixture(autouse=True)
def random_state_restored() -> Iterator[None]:
    """The order of the tests must not decide what a seedless one draws."""
    # Looked up, not imported: most tests need neither, and torch alone takes seconds.
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.random.get_rng_state() if torch else None
    yield
    random.setstate(python_state)
    if numpy:
        numpy.random.set_state(numpy_state)
    if torch:
        torch.random.set_rng_state(torch_state)


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real video files, which is too big for the repository."""
    folder = Path(os.environ.get("PENSTOCK_TEST_CLIPS", ROOT.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; PENSTOCK_TEST_CLIPS names another folder")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test for the GPU, the browser, or llama.cpp is skipped without it, unless the machine was
    promised to have it."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            missing("FAIL_WITHOUT_CUDA", "torch sees no CUDA device")
    if item.get_closest_marker("gguf") and find_spec("llama_cpp") is None:
        missing("FAIL_WITHOUT_GGUF", "llama-cpp-python is not installed")
    tools = ("chromium", "chromedriver")
    if item.get_closest_marker("browser") and not all(map(shutil.which, tools)):
        missing("FAIL_WITHOUT_BROWSER", "Chromium and its driver are not installed")


def missing(promise: str, what: str) -> None:
    """Skip the test, or fail it where the environment holds a promise."""
    if os.environ.get(promise) == "1":
        pytest.fail(f"{promise}=1 and {what}", pytrace=False)
    pytest.skip(what)


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let inputs of every vision half pass in batches, as of one whose trial failed."""
    monkeypatch.setattr("flows.core.job.pass_mode._has_pass_modes", lambda model: False)
