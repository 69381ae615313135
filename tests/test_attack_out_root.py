"""Every way to write the name of a folder, against the folders that a worker's runs are held to:
what is let through is written, and must lie inside."""

import os
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.store import open_store
from flows.deployments.config_checks import VARIABLE, confine
from flows.job.prepare import out_folder
from flows.options.commands import CaptionConfig
from tests.support.attacks import attacked, seeded

pytestmark = pytest.mark.slow

# `{world}` holds `allowed`, which is `{root}`, and `else`, `home` and `clone`, where one works.
# `allowed` holds the links `link` and `chain` to `else`, `back` to itself and `dangling` to
# nothing; `{world}/way` is a link to `{world}`.
INSIDE = [
    *("{root}", "{root}/x", "{root}/x/", "{root}//x", "{root}/x/../y", "{root}/new/deep/../../y"),
    *("{root}/..x", "{root}/...", "{root}/ ", "{root}/$HOME", "{root}/%2e%2e/%2e%2e/x"),
    *("{root}/..\\..\\x", "{root}/\uff0e\uff0e/\uff0e\uff0e/x", "{root}/\u2025/x"),
    *("{root}/" + "d/" * 60, "{root}/back/x", "../allowed/x", "//{root}/x", "~/../allowed/x"),
    "{world}/way/allowed/x",
]
OUTSIDE = [
    *("/", "/etc/penstock", "{world}", "{world}/allowed-too", "{world}/allowed too"),
    *("{world}/Allowed", "{world}/allowed ", "{world}/\uff41llowed/x", "{root}/.."),
    *("{root}/../else", "{root}/../allowed/../else", "{root}//..//else", "{root}/x/../../else"),
    *("{root}/new/new/../../../else/x", "{root}/link", "{root}/link/../x"),
    *("{root}/link/../../allowed-too", "{root}/chain/x", "{root}/dangling", "{root}/back/../x"),
    *("{world}/new/../allowed/x", "{world}/else/new/../../allowed/x", "file://{root}/x"),
    *("file:///../..{root}/x", "file:///{root}/x", "file:{root}/x", "file://localhost{root}/x"),
    *("s3://{root}/x", "x", ".", "..", "-", " ", "~/x", "~nobody-of-this-name/x", "$HOME/x"),
    *("${{HOME}}/../allowed/x", "{root}:/x", " {root}/x", "\ufeff{root}/x", "\\{root}\\x"),
    *("{root}\0/../../else", "{root}/\udc80\ud800", "/proc/self/cwd/x"),
    *("/".join(("/proc/self", "root", "etc")), "/dev/null", "{world}/else/" + "d" * 300),
    *("file://", "file://.", "file://~", "file://else", "file:///", "file://{root}/../x"),
]
ALSO_FOR_STORE = [
    "file://{root}/x",
    "file:///{root}/x",
    "file:///../..{root}/x",
    "file://../allowed/x",
]
"""A store may be an address of a file, and is opened where that leads."""
SEGMENTS = [
    *("..", ".", "", "allowed", "link", "chain", "back"),
    *("new", "else", "dangling", "x", "way"),
]
HEADS = ["", "/", "//", "~/", "file://", "file:///", "{root}/", "{world}/", "file://{root}/"]
DRAWN = 1000


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `allowed`, links in and out of it, and a worker that works beside it."""
    world = tmp_path / "world"
    for name in ("allowed", "else", "clone", "home"):
        (world / name).mkdir(parents=True)
    (world / "allowed" / "link").symlink_to(world / "else")
    (world / "allowed" / "chain").symlink_to("link")
    (world / "allowed" / "back").symlink_to(".")
    (world / "allowed" / "dangling").symlink_to(world / "not-there")
    (world / "way").symlink_to(world)
    monkeypatch.setenv(VARIABLE, str(world / "allowed"))
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.chdir(world / "clone")
    return world


def spelled(text: str, world: Path) -> str:
    return text.format(root=world / "allowed", world=world)


def passes(config: CaptionConfig) -> bool:
    try:
        confine(config)
    except UsageError:
        return False
    return True


def written(config: CaptionConfig, world: Path) -> None:
    """What a run makes first, where it makes it; it must lie inside, and nothing elsewhere."""
    root = str(world / "allowed")
    before = outside(world)
    out, store = out_folder(config), open_store(config.store_url)
    for folder in (out, store.local):
        real = os.path.realpath(folder)
        assert real == root or real.startswith(f"{root}/"), (config.out, config.store, real)
    with suppress(OSError, EnvironmentFault):  # where it leads by a broken link, it cannot be made
        out.mkdir(parents=True, exist_ok=True)
        (out / "captions.jsonl").write_bytes(b"")
        store.check_writable()
        store.put_if_absent("features/one", [b"one"])
    assert outside(world) == before, (config.out, config.store)


def outside(world: Path) -> set[str]:
    """Everything that is there but not in the folder."""
    found: set[str] = set()
    for folder, folders, files in os.walk(world):
        if folder == str(world):
            folders.remove("allowed")
        found.update(os.path.join(folder, name) for name in (*folders, *files))
    return found


def of(world: Path, **given: str) -> CaptionConfig:
    inside = str(world / "allowed" / "plain")
    return CaptionConfig(sources=("a.mp4",), **{"out": inside, "store": inside, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text"),
    [*product(("out", "store"), INSIDE), *(("store", text) for text in ALSO_FOR_STORE)],
)
def test_what_leads_inside_is_let_through_and_lies_there(world: Path, name: str, text: str) -> None:
    config = of(world, **{name: spelled(text, world)})
    assert passes(config)
    written(config, world)


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_leads_outside_is_refused_in_one_line(world: Path, text: str) -> None:
    before = outside(world)
    for name in ("out",) if text in ALSO_FOR_STORE else ("out", "store"):
        with pytest.raises(UsageError):
            confine(of(world, **{name: spelled(text, world)}))
    assert outside(world) == before


@pytest.mark.parametrize(
    "root", ["{world}/else:{world}/allowed", "{world}/way/allowed", "../allowed"]
)
def test_roots_are_taken_for_where_they_lead(
    world: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv(VARIABLE, spelled(root, world))
    assert passes(of(world))
    assert not passes(of(world, out=str(world / "home")))


def test_whatever_is_let_through_is_written_inside(world: Path) -> None:
    random = seeded("paths")
    through = 0
    for _ in range(DRAWN):
        steps = random.choices(SEGMENTS, k=random.randrange(1, 7))
        text = spelled(random.choice(HEADS), world) + "/".join(steps)
        name = random.choice(["out", "store"])
        if text and passes(config := of(world, **{name: text})):
            through += 1
            written(config, world)
    assert DRAWN / 20 < through < DRAWN / 2


def test_an_empty_out_is_refused_wherever_it_is_given(world: Path) -> None:
    with pytest.raises(UsageError, match="--out is empty"):
        of(world, out="")
    before = outside(world)
    outcome = attacked("caption", "a.mp4", "--model", "demo", "--out", "", cwd=world / "clone")
    outcome.holds(2)
    assert "--out is empty" in outcome.err
    assert outside(world) == before


def test_a_store_that_is_left_out_is_the_worker_s_own(world: Path) -> None:
    config = replace(of(world), store="")
    assert passes(config)
    assert open_store(config.store_url).url == os.environ["PENSTOCK_STORE"]
