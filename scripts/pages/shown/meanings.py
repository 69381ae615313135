"""Says what the placeholders of the pages stand for where their commands are run, and which of them
are not run and why; runs nothing."""

import re

from scripts.pages.shown.commands import Shown

DEMO_FOR = (
    # Enough files to learn from, a person who corrects them, and a short training.
    (
        re.compile(r"penstock caption VIDEOS/ (.*--out my-captions)$"),
        r"penstock caption MANY/ \1 --chunk 0.7 --frames 2 --max-new-tokens 24",
    ),
    (
        re.compile(r"penstock review my-captions"),
        "python -m scripts.pages.shown.corrected my-captions",
    ),
    (re.compile(r"penstock learn my-captions$"), "penstock learn my-captions --steps 4"),
    # A model of the hub, or somebody's own: the demo's, of the kind that the command takes.
    (re.compile(r"--model (?:M|MODEL|…|[\w-]+/[\w.-]+|eva-8b)(?=\s|$)"), "--model demo"),
    (re.compile(r"\bexport (?:M|MODEL)(?=\s)"), "export demo"),
    (re.compile(r"\b(export demo .*)$"), r"\1 --samples 8"),
    # Of a synopsis what has to be there, and the first of what may be.
    (re.compile(r"\s*(?<!')\[[^\]]*\]"), ""),
    (re.compile(r"(--\w[\w-]* \w[\w.-]*)(?:\|\w[\w.-]*)+"), r"\1"),
    (re.compile(r"--count 200\b"), "--count 80"),
    (re.compile(r"--index films\b"), "--index photos"),
    # A cluster of this machine; the array of Slurm, as a loop over lists of one clip.
    (re.compile(r"--ray 10\.0\.0\.1:6379"), "--ray auto"),
    (re.compile(r"\b(split .*) -l 50\b"), r"\1 -l 1"),
    (
        re.compile(r"sbatch --wait --array=0-19 .*--wrap '(.*)'$"),
        r"for SLURM_ARRAY_TASK_ID in 0 1; do \1 || exit; done",
    ),
    (re.compile(r"\bmore\.jsonl\b"), "out/captions.jsonl"),
)
"""What is typed instead. Folders and files have their names from the pages (`media.py`)."""

NOT_RUN = (
    (r"make (docs|docs-check|check|lint|test|test-slow|test-gpu)\b", "CI itself, or a part of it"),
    (
        r"make (bench|models|readers)\b|python (-m )?(benchmarks|scripts\.prove\.mutation)\b",
        "takes minutes to hours, prints figures",
    ),
    (r"penstock check .* --fix", "needs a tokenizer; tests/commands/test_check_fix.py has one"),
    (r".*\b(penstock_demo(\.dual)?\.(train|evaluate))\b", "takes minutes to an hour"),
    (r".*scripts[./]prove[./]gpu_check|make gpu-check\b", "needs a GPU; tests run it on stand-ins"),
    (
        r"make (wheel|setup|image|test-install)\b|python -m venv|~/penstock/bin/pip\b|uvx |pipx ",
        "installs 8 GB; make test-install and tests/project/test_setup.py try it",
    ),
    (
        r"make (server|worker)\b|prefect |export PREFECT_|.*PREFECT_API_URL|.* --prefect",
        "needs a server that stays; scripts/prove/follow_deploy.py follows the page on one",
    ),
    (r"curl ", "needs a server that stays; tests/project/test_serve_page.py runs the page"),
    (
        r"python scripts/prove/(deployment_check|follow_deploy|many_check)\.py",
        "takes minutes; the slow tests run it",
    ),
    (
        r"(sudo|systemctl|loginctl|journalctl) |.*(sudo|systemd|server\.env|worker\.env)\b|secret=",
        "changes the machine: systemd, Postgres, root",
    ),
    (
        r"penstock .*--gpus \d",
        "needs several GPUs; tests/processes/test_running_gpus.py has stand-ins",
    ),
    (r"ray start ", "the nodes of scripts/run/ray_nodes.py stand for it"),
    (r"ray symmetric-run ", "ends every Ray process of the machine; docs/many.md says how it ran"),
    (r"sbatch --nodes |kubectl ", "needs a cluster"),
    (r"hf |git clone |datasets-cli |pip install ", "needs the network"),
    (r"\.venv/bin/(python -m (ensurepip|pip)|jupyter) ", "installs Jupyter, and starts it"),
    (r"rm -rf ", "removes what is installed"),
    (
        r"penstock convert eva-pickled ",
        "needs the checkpoint from the hub; usage.md's convert is run",
    ),
    (
        r"penstock sift .*--similar ",
        "needs a package of an extra; tests/commands/test_sift.py has it",
    ),
    (r"penstock .*--adapter DIR", "needs a trained adapter; tune.md's are run"),
    (
        r"penstock export M .*--adapter style",
        "as export.md's, which is run; tests/commands/test_caption_adapters.py does it with one",
    ),
    (
        r"penstock (ask|caption|plan) .*--endpoint",
        "needs a server of models; tests/commands/test_caption_endpoint.py has two",
    ),
    (
        r"penstock label .*--tagger",
        "needs a tagger; tests/commands/test_label_tagger.py has tiny ones",
    ),
    (r"penstock doctor --model DIR", "needs an exported model; tests measure one"),
)
"""Begins of commands that are only parsed, and the reason."""

PAGES_NOT_RUN = {
    "docs/gguf.md": "needs llama.cpp (`make gguf`); see tests/commands/test_caption_gguf.py",
    "docs/recipes/clusters.md": "needs a cluster",
    "docs/scale.md": "needs a bucket; tests/commands/test_caption_far.py has one",
    "docs/deploy/README.md": "scripts/prove/follow_deploy.py follows the page in a fresh clone",
    "docs/far.md": "needs a bucket and a server; tests/commands/test_caption_far.py has both",
    "docs/serve.md": "needs a server that stays; tests/project/test_serve_page.py runs the page",
}
"""Pages of which nothing is run, and the reason."""

CODE_NOT_RUN = {
    "import fiftyone": "needs FiftyOne",
    "image_vectors(load_half(folder": "goes on from a processor and pictures of one's own",
    "THUDM/cogvlm2": "needs the checkpoint from the hub",
    "AutoProcessor.from_pretrained(checkpoint)": "tests/project/test_docs.py runs it",
    "load_half(checkpoint": "tests/project/test_docs.py runs it",
}
"""What stands in Python that is only compiled, and the reason."""


CODE_FOR = (
    ('"model": "M"', '"model": "demo"'),
    ('model="M"', 'model="demo"'),
    ("ActorPoolStrategy(size=2)", "ActorPoolStrategy(size=1)"),
)
"""What stands in Python that is run, and what is run in its place."""
SHARED = "/nas/"
"""Folder that all machines have, on the pages: one of the page's own is meant."""
ON_RAY = ("docs/many.md",)
"""Pages whose commands are run on a Ray cluster of this machine, with simulated GPUs."""
GPUS, CPUS = 2, 8
"""What that cluster says that it has."""

STAYING = ("penstock review ", "penstock studio ", "penstock serve ")
"""Commands that end when they are asked to."""

ONCE = ("make demo",)
"""Slow commands that need nothing of their page: they are run on the first that shows them."""
AGAIN = "run on an earlier page"

CAPTION = "penstock caption VIDEOS/ --model demo --quiet"
BEFORE = {"docs/report.md": CAPTION, "docs/review.md": CAPTION}
"""What a page takes for done when it begins."""


WEIGHTS = {
    "make demo": 40,
    "penstock export": 30,
    "penstock caption": 6,
    "penstock tune": 6,
    "penstock learn": 15,
}
"""About how many seconds a command that begins so takes; any other: 1."""


def weight(shown: Shown) -> int:
    """Return about how many seconds a command takes; 0 where it is not run."""
    found = (many for begin, many in WEIGHTS.items() if shown.text.startswith(begin))
    return 0 if reason_not_run(shown) else next(found, 1)


def before(page: str) -> list[Shown]:
    """What has to be run before the first command of a page."""
    return [Shown(page=page, line=0, text=BEFORE[page])] if page in BEFORE else []


def is_ours(shown: Shown) -> bool:
    """Whether what it writes for people is written by this program."""
    return shown.text.startswith(("penstock ", "make ")) and "--json" not in shown.text


def typed(text: str) -> str:
    """The command that is run in the place of one that is shown."""
    for shown, meant in DEMO_FOR:
        text = shown.sub(meant, text)
    by_default = re.match(r"penstock (caption|plan) ", text) and "--model" not in text
    return f"{text} --model demo" if by_default else text


def typed_code(code: str) -> str:
    """The Python that is run in the place of what is shown."""
    for shown, meant in CODE_FOR:
        code = code.replace(shown, meant)
    return code


def reason_not_run(shown: Shown) -> str:
    """Why a command is only parsed; empty where it is run."""
    if shown.code:
        reasons = [why for part, why in CODE_NOT_RUN.items() if part in shown.code]
    else:
        reasons = [why for begin, why in NOT_RUN if re.match(begin, shown.text)]
    return next(iter(reasons), "") or PAGES_NOT_RUN.get(shown.page, "")


def expected_code(shown: Shown) -> int:
    """The exit code that the page tells of."""
    message = re.search(r"exit code (\d)", shown.comment)
    return int(message[1]) if message else 0


def is_stopped(shown: Shown) -> bool:
    """Whether it is stopped by Ctrl-C: the page tells so, or it would stay."""
    return "Ctrl-C" in shown.comment or shown.text.startswith(STAYING)


def takes_default_port(shown: Shown) -> bool:
    """Whether it listens on the port that every `penstock review` and `studio` takes by default."""
    return shown.text.startswith(STAYING) and "--port" not in shown.text
