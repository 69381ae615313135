"""Commands that are started in prepared folders and from odd shells: a folder's code is not run and
its settings set nothing, and shells that hold proxies, closed streams or no home change no run."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.interfaces.prefect.server import client_settings, own_login
from stages.process.child_environment import child_environment
from tests.support.commands import completed
from tests.support.media import write_video
from tests.support.pipeline import ROOT

STARTERS = ("flows", "stages", "artifacts", "penstock", "penstock_demo", "scripts")
STARTS = {"stages/process/fork_client.py", "scripts/run/run_worker.py"}
"""Some of the files that start Python, so that a search that finds none fails."""
OF_DEVELOPERS = frozenset(("follow_deploy", "fault_check", "prefect_stack"))
"""Scripts that run in the clone and prepare or check a release: no user starts them."""


def words_after_python(path: Path) -> list[tuple[int, str]]:
    """The line of each list or call that begins with this Python, and the word that follows."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        words = getattr(node, "elts", None) or getattr(node, "args", None)
        if not isinstance(words, list):
            continue
        for first, second in pairwise(words):
            if ast.unparse(first) == "sys.executable":
                found.append((first.lineno, ast.unparse(second)))
    return found


@pytest.mark.slow
def test_every_python_process_of_the_program_searches_no_current_folder() -> None:
    seen, without = set(), []
    for path in (path for name in STARTERS for path in (ROOT / name).rglob("*.py")):
        if path.stem in OF_DEVELOPERS and path.is_relative_to(ROOT / "scripts"):
            continue
        name = path.relative_to(ROOT).as_posix()
        for line, word in words_after_python(path):
            seen.add(name)
            # One starts itself once more, with the options that it had.
            if word != "'-P'" and name != "penstock/checked_start.py":
                without.append(f"{name}:{line} {word}")
    assert without == [] and seen >= STARTS


@pytest.mark.parametrize("entry", ["", ".", "films", "./"])
def test_a_folder_s_code_is_not_searched_for_by_children(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, os.pathsep.join([entry, "/mine", entry, "/also", entry]))
    made = child_environment()
    assert made["PYTHONPATH"] == f"{ROOT}:/mine:/also"
    assert (made["PATH"], made["LD_LIBRARY_PATH"]) == ("/mine:/also", "/mine:/also")


CODE = """
import sys
from penstock.start import main
sys.argv = ["penstock", "--version"]
code = main()
sys.path_importer_cache.clear()
try:
    import a_name_of_nothing_else
except ModuleNotFoundError:
    print("not found")
import os
import socket
print(os.environ.get("PYTHONPATH"))
sys.exit(code)
"""


@pytest.mark.in_turn
@pytest.mark.parametrize("path", [None, "", ":{root}", ".:{root}", "{root}:", "films:{root}"])
def test_the_command_imports_nothing_of_current_folders(path: str | None, tmp_path: Path) -> None:
    for name in ("films", "bin"):
        (tmp_path / name).mkdir()
    for folder in (tmp_path, tmp_path / "films"):
        (folder / "a_name_of_nothing_else.py").write_text("print('RUN', __file__)\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path.format(root=ROOT)
    # As the script of an installation does it: with a folder of its own first.
    (tmp_path / "bin" / "penstock").write_text(CODE)
    done = completed([sys.executable, "bin/penstock"], cwd=tmp_path, env=environment)
    version, *lines = done.stdout.splitlines()
    kept = None if path is None else str(ROOT) if path else ""
    assert (done.returncode, lines) == (0, ["not found", str(kept)]), done.stdout + done.stderr
    if path is None:  # `python -c`, as `python -m`, puts the current folder first itself
        done = completed([sys.executable, "-c", CODE], cwd=tmp_path, env=environment)
        assert done.stdout.splitlines() == [version, *lines], done.stdout + done.stderr


def test_an_absolute_entry_stays_where_it_is_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "a_name_of_nothing_else.py").write_text("print('mine')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}::{ROOT}"}
    done = completed([sys.executable, "-c", CODE], cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[1:] == ["mine", f"{tmp_path}:{ROOT}"], done.stderr


def test_server_and_worker_hand_the_clone_on_to_flow_runs_and_no_current_folder() -> None:
    shown = ". scripts/run/prefect_variables; echo $PYTHONPATH $PYTHONSAFEPATH $PYTHONUTF8"
    for given, expected in (({}, f"{ROOT} 1 1"), ({"PYTHONPATH": "/mine"}, f"{ROOT}:/mine 1 1")):
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = completed(["sh", "-euc", shown], env={**kept, **given}, check=True)
        assert done.stdout.strip() == expected


SETTINGS = {
    ".env": "PREFECT_API_URL=http://127.0.0.1:9/env\nPREFECT_PROFILES_PATH={folder}/theirs.toml\n",
    "prefect.toml": 'profiles_path = "theirs.toml"\n[api]\nkey = "theirs"\n'
    '[logging]\nlevel = "ERROR"\n',
    "pyproject.toml": '[tool.prefect]\nprofiles_path = "theirs.toml"\n'
    "[tool.prefect.client]\nmax_retries = 77\n",
    "theirs.toml": 'active = "a"\n[profiles.a]\nPREFECT_LOGGING_LOG_PRINTS = "true"\n',
}
"""What a folder may hold for Prefect, and what each would set."""
READ = """
import os, sys
opened = []
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith((os.getcwd(), ".", "p", "t")):
        opened.append(str(arguments[0]))
sys.addaudithook(note)
import flows.interfaces.prefect.commands
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
for updates in ({}, {PREFECT_API_URL: "http://127.0.0.1:8/mine"}):
    with temporary_settings(updates):
        found = get_current_settings()
        print(found.api.url, found.api.key, found.logging.level, found.client.max_retries)
        print(found.logging.log_prints, found.server.api.port)
print(opened)
"""


@pytest.mark.slow
def test_not_a_folder_s_files_but_the_user_s_profile_sets_prefect(tmp_path: Path) -> None:
    (films := tmp_path / "films").mkdir()
    (home := tmp_path / "prefect").mkdir()
    for name, text in SETTINGS.items():
        (films / name).write_text(text.replace("{folder}", str(films)))
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_SERVER_API_PORT = "4777"\n'
    (home / "profiles.toml").write_text(profile)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment = {**kept, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = completed([sys.executable, "-P", "-c", READ], cwd=films, env=environment)
    own = ["None None INFO 2", "False 4777", "http://127.0.0.1:8/mine None INFO 2", "False 4777"]
    assert done.stdout.splitlines() == [*own, "[]"], done.stdout + done.stderr


def test_whoever_listens_where_a_folder_or_the_user_says_gets_no_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setattr("flows.interfaces.prefect.server.answers", lambda url: True)
    own_login()
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            assert not client_settings()


@pytest.mark.in_turn
@pytest.mark.parametrize("url", ["", " "])
def test_without_a_server_a_flow_is_refused_before_any_work(url: str, tmp_path: Path) -> None:
    """Prefect would start a server in the current folder, for everybody, and run its code."""
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "prefect")}
    words = ["caption", str(tmp_path), "--model", "demo", "--prefect", "--out", "out"]
    done = completed([*PENSTOCK, *words], cwd=tmp_path, env=environment)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "make server" in line and "PREFECT_API_URL" in line
    assert not (tmp_path / "out").exists()


def test_what_libraries_start_searches_no_current_folder(tmp_path: Path) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('a file of the folder ran')")
    code = "import penstock.start as s, subprocess, sys; s.leave_current_folder(); "
    code += "sys.exit(subprocess.run([sys.executable, '-m', 'timeit', '-n', '1']).returncode)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = completed([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["server", "setup", "lock", "bench"])
def test_a_script_works_in_its_clone_whatever_cdpath_is(script: str) -> None:
    lines = (ROOT / "scripts" / "run" / script).read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith('cd "$(dirname'))
    assert "unset CDPATH" in lines[:at]


@pytest.mark.slow
def test_a_wrong_setting_of_prefect_is_named(tmp_path: Path) -> None:
    words = ["caption", str(tmp_path), "--prefect", "--out", str(tmp_path / "out")]
    done = completed([*PENSTOCK, *words], env={**os.environ, "PREFECT_LOGGING_LEVEL": "bogus"})
    assert done.returncode == 5
    last = done.stderr.splitlines()[-1]
    assert last.startswith("penstock: Prefect refuses its settings: ") and "LoggingSettings" in last


ASKED = """
import flows.interfaces.prefect, http.server, os, threading
from flows.interfaces.prefect.server import answers
import httpx2 as httpx, urllib.request
class Up(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Up)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/api"
print(answers(url), flush=True)
print(httpx.get(url).status_code, urllib.request.urlopen(url, timeout=5).status)
print(os.environ["no_proxy"], os.environ["NO_PROXY"])
"""
HERE = "127.0.0.1,localhost,::1"
MINE = "example.org"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (HERE, HERE)),
        ({"NO_PROXY": MINE}, (f"{MINE},{HERE}", f"{MINE},{HERE}")),
        ({"no_proxy": MINE, "NO_PROXY": "b.org"}, (f"{MINE},{HERE}", f"b.org,{HERE}")),
        ({"no_proxy": "localhost"}, ("localhost,127.0.0.1,::1",) * 2),
        ({"no_proxy": "*"}, ("*", "*")),
    ],
)
def test_a_proxy_is_not_asked_for_this_machine(
    given: dict[str, str], expected: tuple[str, str]
) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.1)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = {"http_proxy": address, "HTTP_PROXY": address, "all_proxy": address}
        command = [sys.executable, "-c", ASKED]
        done = completed(command, env={**kept, **proxies, **given}, timeout=60)
        assert done.stdout.split() == ["True", "200", "200", *expected], done.stderr
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_server_and_worker_ask_this_machine_through_no_proxy() -> None:
    shown = '. scripts/run/prefect_variables; echo "$no_proxy $NO_PROXY"'
    kept = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    for given, expected in (("", HERE), (MINE, f"{MINE},{HERE}"), ("*", "*")):
        done = completed(["sh", "-euc", shown], env={**kept, "NO_PROXY": given}, check=True)
        assert done.stdout.split() == [expected] * 2


def test_stages_keep_docstrings_and_take_no_folder_as_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert child_environment().get("PYTHONOPTIMIZE") is None
    assert child_environment()["HOME"] == os.environ["HOME"]
    monkeypatch.setenv("HOME", "~nobody-of-that-name")  # as `~` of a user without a home
    assert child_environment()["HOME"] == os.devnull


def test_relative_folders_of_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in (("HF_HOME", "hub"), ("TMPDIR", "~/t"), ("PENSTOCK_STORE", "s3://b/f")):
        monkeypatch.setenv(name, path)
    made = child_environment()
    assert made["HF_HOME"] == str(tmp_path / "hub")
    assert (made["TMPDIR"], made["PENSTOCK_STORE"]) == ("~/t", "s3://b/f")


CLOSED = """
import os, subprocess, sys
import flows.interfaces.cli.main as cli
from penstock.start import main
def command():
    print("to standard output")
    print("to standard error", file=sys.stderr)
    opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(1, b"of a library")
    subprocess.run(["sh", "-c", "echo of a child; echo of a child >&2; cat"], check=True)
    os.write(opened, f"{opened > 2} {sys.stdin.read()!r}".encode())
    return 7
cli.main = command
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "<&- 2>&-"])
def test_what_is_printed_to_closed_streams_goes_into_no_file(closed: str, tmp_path: Path) -> None:
    line = f'exec "$0" -c "$1" "$2" {closed}'
    out, errors = (tmp_path / "out").open("w"), (tmp_path / "errors").open("w")
    with out, errors:
        command = ["sh", "-c", line, sys.executable, CLOSED, str(tmp_path / "file")]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, check=False
        )
    written = (tmp_path / "file").read_text() if (tmp_path / "file").exists() else ""
    assert (written, done.returncode) == ("True ''", 7), (tmp_path / "errors").read_text()


def caption(folder: Path, *before: str, after: str = "", **variables: str) -> str:
    """What a run of the demo on one clip says in its record, and how it ends."""
    (folder / "films").mkdir(exist_ok=True)
    write_video(folder / "films" / "clip.mp4")
    words = ["-P", "-m", "penstock", "caption", "films", "--model", "demo"]
    words += ["--store", "store", "--out", "out"]
    command = ["sh", "-c", f'exec "$@" {after}', "sh", *before, sys.executable, *words]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PENSTOCK_"))}
    done = completed(command, cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), **variables})
    record = folder / "out" / "run.json"
    state = json.loads(record.read_text())["state"] if record.exists() else done.stderr
    return f"{done.returncode} {state}"


LIBRARY = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("FILE", "w")); }
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler is installed")
def test_no_library_of_the_current_folder_is_loaded(tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    (tmp_path / "a.c").write_text(LIBRARY.replace("FILE", str(loaded)))
    library = tmp_path / "libcuda.so.1"
    completed(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "a.c"], check=True)
    assert caption(tmp_path) == "0 done"
    assert not loaded.exists(), f"a stage loaded {library}"


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv of util-linux"
)
def test_a_user_without_home_and_name_makes_captions() -> None:
    rights = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]  # for this Python
    unknown = ["setpriv", "--reuid", "54321", "--clear-groups", *rights]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        assert caption(Path(folder), "env", "-u", "HOME", *unknown) == "0 done"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prefect_runs_in_a_folder_of_code_and_settings_behind_a_proxy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        theirs.settimeout(0.1)
        address = f"http://127.0.0.1:{theirs.getsockname()[1]}"
        (tmp_path / ".env").write_text(f"PREFECT_API_URL={address}/api\n")
        (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{address}/api"\n')
        for name in ("types", "logging", "json", "sitecustomize", "uvicorn", "prefect"):
            (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\n")
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            kept = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "http_proxy": address}
            assert caption(tmp_path, after="--prefect", **kept) == "0 done"
        with pytest.raises(TimeoutError):
            theirs.accept()
    assert not (tmp_path / "RUN").exists()


PENSTOCK = [sys.executable, "-P", "-m", "penstock"]
NAMES = {"café.mp4": "video", "日本.png": "image", os.fsdecode(b"caf\xe9 \xff.png"): "image"}
"""Names of media in Latin letters, in others, and in bytes that are no UTF-8."""
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a shell in a locale that is ISO 8859-1."""
    if shutil.which("localedef") is None:
        pytest.skip("needs the program localedef, of the package libc-bin")
    folder, name = tmp_path_factory.mktemp("locales"), "en_US.ISO-8859-1"
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
    if (made := completed(words)).returncode:
        pytest.skip(f"localedef cannot make a locale (package locales): {made.stderr.strip()}")
    variables = {"LOCPATH": str(folder), "LC_ALL": name, "LANG": name}
    shown = [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"]
    assert completed(shown, env={**os.environ, **variables}).stdout == "iso8859-1\n"
    return variables


def in_shell(
    words: list[str],
    variables: dict[str, str],
    folder: Path,
    code: int = 0,
    options: Sequence[str] = ("-P",),
) -> "subprocess.CompletedProcess[bytes]":
    """What came of a command with words and output in bytes, as a shell gives and takes them."""
    command = [os.fsencode(each) for each in (sys.executable, *options, "-m", "penstock", *words)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == code, (done.stdout + done.stderr).decode(errors="replace")
    return done


def named_media(folder: Path) -> None:
    """Media of these names, each with bytes of its own, and texts that name them."""
    (folder / "média").mkdir(parents=True)
    for level, (name, kind) in enumerate(NAMES.items(), 1):
        path = folder / "média" / name
        if kind == "video":
            write_video(path, size=(96, 128), ticks=range(20))
        else:
            Image.new("RGB", (128, 96), (60 * level, 40, 90)).save(path)
        os.utime(path, (0, 1))  # media.jsonl has the time
    (folder / "labels.txt").write_text("größer\n猫\n", encoding="utf-8")
    (folder / "liste é.txt").write_text("média/日本.png\n", encoding="utf-8")


def outputs_below(folder: Path) -> dict[bytes, bytes]:
    """Name and bytes of every output, without what holds times, ids of processes or signatures."""
    differing = {".lock", ".penstock.json", "run.json"}
    return {
        os.fsencode(path.relative_to(folder)): path.read_bytes()
        for path in folder.glob("out*/**/*")
        if path.is_file() and path.name not in differing and "logs" not in path.parts
    }


def made_in(variables: dict[str, str], folder: Path) -> tuple[dict[bytes, bytes], list[bytes]]:
    """The outputs of three commands in a new folder, and what they print."""
    named_media(folder)
    own = ["--store", "store é", "--model", "demo"]
    words = ["--prompt", "Beschreibe größer 猫", "--suffix", " é", "--trigger", "größe"]
    formats = ["--format", "txt,csv,vtt,parquet,musubi,diffusion-pipe,kohya,ltx,hf"]
    commands = [
        ["caption", "média", "@liste é.txt", *own, *words, *formats, "--out", "out é"],
        ["label", "média", *own, "--labels", "labels.txt", "--format", "csv,coco", "--out", "out1"],
        ["sift", "média", *own[:2], "--format", "csv,parquet", "--out", "out2"],
    ]
    printed = [in_shell(words, variables, folder).stdout for words in commands]
    with open(folder / "out é" / "run.json", encoding="utf-8") as file:
        command = json.load(file)["command"]
    assert command == {"words": commands[0], "folder": str(folder)}
    return outputs_below(folder), printed


@pytest.mark.slow
def test_no_output_depends_on_the_locale(latin: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "w"
    made = {}
    for name, variables in (("utf-8", {"LC_ALL": "C.UTF-8"}), ("latin", latin)):
        made[name] = made_in(variables, folder)
        folder.rename(tmp_path / name)
    expected, printed = made["utf-8"]
    media = {os.fsencode(folder / "média" / name) for name in NAMES}
    own = {kind: expected[os.fsencode(f"out é/musubi/{kind}s.jsonl")] for kind in NAMES.values()}
    paths = [json.loads(row)[f"{kind}_path"] for kind, c in own.items() for row in c.splitlines()]
    assert set(map(os.fsencode, paths)) == media
    texts = {"café.txt", "日本.txt", "caf� �.txt"}
    assert {os.fsencode(f"out é/{text}") for text in texts} <= expected.keys()
    found, also_printed = made["latin"]
    assert found.keys() == expected.keys()
    assert [n for n, c in found.items() if c != expected[n]] == []
    assert also_printed == printed


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [[], ["-I"], ["-E"]])
def test_the_command_reads_names_as_utf8_in_every_locale(
    isolated: list[str], latin: dict[str, str], tmp_path: Path
) -> None:
    words = ["sift", os.fsdecode(b"\xe6\x97\xa5 \xff.png")]
    text = b"penstock: nothing to sift: \xe6\x97\xa5 \xef\xbf\xbd.png: no such file or folder. "
    for variables in (latin, ASCII, {"LC_ALL": "C.UTF-8"}):
        done = in_shell(words, variables, tmp_path, 2, isolated)
        assert done.stderr.splitlines()[-1].startswith(text), done.stderr


def test_python_is_told_how_to_start_where_names_are_not_utf8(latin: dict[str, str]) -> None:
    code = "import penstock; print(penstock.plan)"
    done = completed([sys.executable, "-c", code], env={**os.environ, **latin})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: Python takes names of files for iso8859-1 in this locale, and would write "
        "wrong ones. Set PYTHONUTF8=1 before Python starts, or LANG=C.UTF-8"
    )
    # Children have the mode that this process has, even if only an option gave it.
    code = "import os, artifacts; print(os.environ['PYTHONUTF8'])"
    for variables in (latin, {**latin, "PYTHONUTF8": "0"}):
        words = [sys.executable, "-X", "utf8", "-c", code]
        assert completed(words, env={**os.environ, **variables}).stdout == "1\n"


@pytest.mark.slow
def test_a_stream_that_cannot_hold_a_name_shows_it_with_question_marks(tmp_path: Path) -> None:
    Image.new("RGB", (128, 96)).save(tmp_path / "日.png")
    words = ["sift", "日.png", "--store", "store", "--out", "日本"]
    done = in_shell(words, {"PYTHONIOENCODING": "latin-1"}, tmp_path)
    assert f"1 of 1 file kept in {tmp_path}/??/kept.jsonl".encode() in done.stdout


@pytest.mark.slow
def test_a_path_that_is_not_utf8_keeps_its_bytes_in_every_record(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9 \xff")
    named_media(folder)
    for name in NAMES:
        (folder / "média" / name).with_suffix(".mp4").unlink(missing_ok=True)
    in_shell(["sift", "média", "--store", "store", "--out", "out"], {}, folder)
    record = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    kept = str(folder / "out" / "kept.jsonl")
    assert (record["out"], record["outputs"]["kept.jsonl"]) == (str(folder / "out"), kept)
    rows = (folder / "out" / "marks.jsonl").read_text(encoding="utf-8").splitlines()
    named = sorted(os.fsencode(json.loads(row)["path"]) for row in rows)
    assert named == sorted(os.fsencode(p) for p in (folder / "média").iterdir())
    status = json.loads(in_shell(["status", "--json", "out"], {}, folder).stdout)
    assert status["outputs"]["kept.jsonl"] == kept
    in_shell(["report", "out"], {}, folder)
    shown = in_shell(["caption", "média", "--model", "demo", "--format", "musubi"], {}, folder, 2)
    assert b"--format musubi states --out in TOML, and its path is not UTF-8" in shown.stderr


def test_a_deleted_current_folder_is_named_in_one_line(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    words = ["sh", "-c", 'rmdir ../gone; exec "$@"', "sh", *PENSTOCK, "status", str(tmp_path)]
    done = completed(words, cwd=gone)
    assert done.returncode == 5
    assert done.stderr == "penstock: the current folder was deleted. Go to another one\n"


@pytest.mark.parametrize("name", ["typing", "signal", "functools", "pathlib", "re", "types"])
def test_no_file_of_the_current_folder_is_imported_before_that_is_left(
    tmp_path: Path, name: str
) -> None:
    """With an empty entry in PYTHONPATH, as `PYTHONPATH=$PYTHONPATH:/x` gives where it is unset.
    Python is started without `site`, whose `.pth` files import what they like."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the folder ran')")
    code = f"import sys; sys.path.append({str(ROOT)!r}); import penstock.start as s; "
    code += "s.leave_current_folder(); import typing, signal, functools, pathlib, re, types"
    environment = {**os.environ, "PYTHONPATH": ":/x"}
    done = completed([sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
