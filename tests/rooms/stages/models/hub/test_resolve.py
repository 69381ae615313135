"""A model's name leads to a folder or to an error that says what to do."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import is_complete
from stages.models.hub.resolve import find_model, resolve_model
from tests.support.hub import COMMIT, Repository, client, serve, use_cache

MODEL = "owner/name"
SMALL = Repository(files={"config.json": b"{}", "model.safetensors": bytes(3_400_000)})
"""A model as far as the hub's client can tell, of 3.4 MB."""
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
PICKLED = Repository(files={"config.json": b"{}", "pytorch_model.bin": b"pickle"})


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    with client(monkeypatch) as to:
        yield to


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == resolve_model(tmp_path / "model") == tmp_path / "model"


def test_a_folder_without_a_configuration_fails(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        resolve_model(tmp_path)


def test_a_folder_whose_path_is_not_utf8_fails(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"mod\xe9l")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="from a folder whose path is not UTF-8") as caught:
        resolve_model(folder)
    assert caught.value.hint == "Rename the folder, or give a link to it"
    (tmp_path / "model").symlink_to(folder)
    assert resolve_model(tmp_path / "model") == tmp_path / "model"


def test_a_revision_leads_to_its_commit(connect: Callable[[str], None]) -> None:
    with serve({MODEL: Repository(files=SMALL.files, tags=("v1",))}) as hub:
        connect(hub.url)
        found = find_model(MODEL, "v1")
        assert found.commit == found.folder.name == COMMIT
        with pytest.raises(UsageError, match="has no model owner/name at revision v2"):
            find_model(MODEL, "v2")
    assert find_model(MODEL, "v1") == find_model(MODEL, COMMIT) == found  # the hub is gone by now


def test_fonts_come_with_the_small_files(connect: Callable[[str], None]) -> None:
    fonts = {"Roboto-Regular.ttf": b"drawn", "Noto.otf": b"kept in storage"}
    model = Repository(files={**SMALL.files, **fonts, "logo.png": b"no"}, large=("Noto.otf",))
    with serve({MODEL: model}) as hub:
        connect(hub.url)
        folder = find_model(MODEL).folder
    assert {name: (folder / name).read_bytes() for name in fonts} == fonts
    assert not (folder / "logo.png").exists()


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"--revision v2 is given, .* has no revisions.*hub id"):
        find_model(tmp_path, "v2")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "word", "owner/--bad--"])
def test_what_is_neither_a_folder_nor_a_hub_id_fails(name: str) -> None:
    with pytest.raises(UsageError, match="there is no model at"):
        resolve_model(name)


def test_an_unreachable_hub_names_the_demo() -> None:
    with pytest.raises(EnvironmentFault, match="--model demo") as error:
        resolve_model("owner/name")
    assert error.value.exit_code == 5
    assert "HF_HUB_OFFLINE is set" in str(error.value)


def test_half_a_download_is_not_taken_for_a_model(empty_cache: Path) -> None:
    repository = empty_cache / "models--owner--name"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(INDEX)
    (folder / "model-1.safetensors").touch()
    assert not is_complete(folder)
    with pytest.raises(EnvironmentFault):
        resolve_model("owner/name")
    (folder / "model-2.safetensors").touch()
    assert is_complete(folder)
    assert resolve_model("owner/name") == folder  # without a network


def test_a_download_is_announced_once_and_needed_once(
    connect: Callable[[str], None], empty_cache: Path
) -> None:
    texts: list[str] = []
    with serve({MODEL: SMALL}) as hub:
        connect(hub.url)
        folder = resolve_model(MODEL, announce=texts.append)
        assert hub.downloads() == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size == 3_400_000
    assert folder.is_relative_to(empty_cache)
    assert texts == [
        f"downloading the files that describe {MODEL}, 0.1 MB, into {empty_cache} (once)",
        f"downloading {MODEL}, 3.4 MB, into {empty_cache} (once)",
    ]
    assert resolve_model(MODEL, announce=texts.append) == folder  # the hub is gone by now
    assert len(texts) == 2


def test_only_what_is_missing_is_announced_and_downloaded(connect: Callable[[str], None]) -> None:
    shards = {"model-1.safetensors": b"1" * 3_000_000, "model-2.safetensors": b"2" * 1_200_000}
    small = {"config.json": b"{}", "model.safetensors.index.json": INDEX.encode()}
    texts: list[str] = []
    with serve({MODEL: Repository(files={**small, **shards})}) as hub:
        connect(hub.url)
        lost = resolve_model(MODEL) / "model-2.safetensors"
        lost.resolve().unlink()
        lost.unlink()
        hub.forget()
        folder = resolve_model(MODEL, announce=texts.append)
        assert hub.downloads() == ["model-2.safetensors"]
        assert len(texts) == 1 and "1.2 MB" in texts[0]
        (folder / "model-2.safetensors").unlink()  # its content is still in the cache
        assert is_complete(resolve_model(MODEL, announce=texts.append))
        assert len(texts) == 1


def test_a_cache_below_the_home_folder_is_announced_briefly(
    connect: Callable[[str], None], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(empty_cache.parent))
    texts: list[str] = []
    with serve({MODEL: SMALL}) as hub:
        connect(hub.url)
        resolve_model(MODEL, announce=texts.append)
    assert texts[0].endswith("into ~/hub (once)")


def test_a_model_larger_than_the_disk_is_refused_before_its_download(
    connect: Callable[[str], None], empty_cache: Path
) -> None:
    huge = Repository(files=SMALL.files, stated={"model.safetensors": 10**17})
    texts: list[str] = []
    with serve({MODEL: huge}) as hub:
        connect(hub.url)
        with pytest.raises(EnvironmentFault) as fault:
            resolve_model(MODEL, announce=texts.append)
        assert hub.downloads() == ["config.json"]
    assert len(texts) == 1
    assert f"needs 100000000.0 GB in {empty_cache}, where " in fault.value.message
    assert "are free" in fault.value.message and "HF_HOME" in fault.value.hint


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_network(
    connect: Callable[[str], None], empty_cache: Path
) -> None:
    empty_cache.write_text("a file where the folder should be")
    with serve({MODEL: SMALL}) as hub:
        connect(hub.url)
        with pytest.raises(EnvironmentFault, match=r"cannot be written into .* HF_HOME"):
            resolve_model(MODEL)


@pytest.mark.parametrize(
    ("repository", "revision", "says"),
    [
        (Repository(files=SMALL.files, refusal=(403, "GatedRepo")), None, "accepted its terms"),
        (Repository(files=SMALL.files, refusal=(401, "")), None, "denies access to owner/name"),
        (Repository(files=SMALL.files, refusal=(403, "")), None, "denies access to owner/name"),
        (None, None, "the hub has no model owner/name"),
        (SMALL, "v9", "the hub has no model owner/name at revision v9"),
        (PICKLED, None, r"only as pickles \(pytorch_model\.bin\)"),
        (Repository(files={"README.md": b"#"}), None, "holds no model with weights"),
    ],
)
def test_what_the_hub_will_not_give_is_bad_usage(
    repository: Repository | None, revision: str | None, says: str, connect: Callable[[str], None]
) -> None:
    texts: list[str] = []
    with serve({MODEL: repository} if repository else {}) as hub:
        connect(hub.url)
        with pytest.raises(UsageError, match=says) as error:
            resolve_model(MODEL, revision, texts.append)
        # Of what is pickled, the configuration may tell which one to take instead.
        assert hub.downloads() == (["config.json"] if repository is PICKLED else [])
    assert texts == []
    assert error.value.hint and "\n" not in str(error.value)


def test_a_private_model_is_known_to_those_with_a_token(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({MODEL: Repository(files=SMALL.files, token="hf_right")}) as hub:
        connect(hub.url)
        says = {"": "has no model", "hf_other": "has no model", "hf_wrong": "denies access to"}
        for token, words in says.items():
            monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(UsageError, match=rf"{words}.*owner/name.*hf auth login"):
                find_model(MODEL)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        assert (resolve_model(MODEL) / "model.safetensors").exists()


def test_an_index_that_names_what_the_hub_lacks_fails(connect: Callable[[str], None]) -> None:
    files = {"config.json": b"{}", "model.safetensors.index.json": INDEX.encode()}
    with serve({MODEL: Repository(files={**files, "model-1.safetensors": b"1"})}) as hub:
        connect(hub.url)
        with pytest.raises(UsageError, match=r"owner/name lacks model-2\.safetensors"):
            find_model(MODEL)


@pytest.mark.parametrize(
    ("broken", "says"), [(503, "answers with status 503"), (200, "as a model hub"), (0, "reached")]
)
def test_a_hub_out_of_order_is_a_fault_of_the_environment(
    broken: int, says: str, connect: Callable[[str], None]
) -> None:
    with serve({MODEL: SMALL}, broken) as hub:
        connect(hub.url)
        with pytest.raises(EnvironmentFault, match=says) as fault:
            resolve_model(MODEL)
    assert "--model demo" in fault.value.hint and "\n" not in str(fault.value)


def test_a_refused_connection_is_a_fault_of_the_environment(connect: Callable[[str], None]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        connect(f"http://127.0.0.1:{free.getsockname()[1]}")  # bound, and nobody listens
        with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:\d+ cannot be reached"):
            resolve_model(MODEL)


def test_an_unknown_name_of_the_package_fails() -> None:
    import stages.models

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stages.models.nothing


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and no checkpoint has"),
        ({"text_config": {"num_experts": 1e12}}, "num_experts is 1000000000000.0, and no"),
        ({"vision_config": {"depths": [2, 10**8]}}, "depths is 100000000, and no checkpoint"),
        ({"model_type": ["x"]}, "model_type is ['x'], which is no text"),
        ({"text_config": {"model_type": {"a": 1}}}, "model_type is {'a': 1}, which is no text"),
    ],
)
def test_a_configuration_with_values_that_no_checkpoint_has_fails(
    tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", **settings}))
    with pytest.raises(UsageError) as caught:
        find_model(tmp_path)
    assert f"{tmp_path}/config.json cannot be used: {why}" in caught.value.message


def test_a_configuration_with_large_sizes_is_a_model(tmp_path: Path) -> None:
    settings = {"vocab_size": 10**6, "rope_theta": 10**9, "num_hidden_layers": 1000}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": None, **settings}))
    assert find_model(tmp_path).folder == tmp_path
