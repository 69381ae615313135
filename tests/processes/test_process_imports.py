"""A stage's process leaves out what it hardly ever uses, and has it once it is wanted; what
transformers exports is read from its files once; garbage waits meanwhile."""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.paths import user_cache
from stages.process.deferred_imports import Structure, with_cached_structure
from stages.process.job import gc_frozen
from tests.support.commands import completed

LEFT_OUT = ("torch._inductor", "torch.distributed.tensor", "scipy.linalg")
BEGIN = """
import sys
from stages.process.deferred_imports import COMPILER, LazyModule, import_transformers
import_transformers()
import torch
def stands():
    return isinstance(sys.modules[COMPILER], LazyModule)
assert stands()
"""


def run(code: str) -> str:
    done = completed([sys.executable, "-c", BEGIN + code])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_half_says_captions_without_the_compiler() -> None:
    code = f"""
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained("penstock_demo/checkpoint")
model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3)
assert stands() and not [name for name in {LEFT_OUT} if name in sys.modules]
"""
    run(code)


@pytest.mark.slow
def test_the_compiler_comes_once_it_is_used_and_knows_what_was_marked() -> None:
    text = run("""
@torch.compiler.disable
def plain(x):
    return x + 1
assert plain(1) == 2 and stands()
marked = sys.modules[COMPILER].marked
assert marked
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
@torch.compile(backend=backend)
def compiled(x):
    return plain(x * 3) * 2
assert compiled(torch.ones(2)).tolist() == [8, 8] and not stands()
import torch._dynamo as compiler
assert compiler is sys.modules[COMPILER] is torch._dynamo and compiler.__file__
from torch._dynamo import trace_rules
allowed = [f for mark, f in marked if mark == "allow_in_graph"]
assert allowed and all(id(f) in trace_rules._allowed_callable_ids for f in allowed)
print(len(graphs))
""")
    assert int(text) == 2  # cut in two around what is never compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        "from torch._dynamo.eval_frame import innermost_fn",
        "import torch._dynamo.config; torch._dynamo.config.recompile_limit",
        "torch._dynamo.utils.counters",
        "from torch._dynamo.utils import is_compile_supported; is_compile_supported('cpu')",
        "torch._dynamo._trace_wrapped_higher_order_op.TransformGetItemToIndex()",
    ],
)
def test_who_asks_for_any_part_of_the_compiler_gets_it(use: str) -> None:
    run(f"{use}\nassert not stands()\n")


NAMES = (
    "boto3.client",
    "torch._inductor.compile",
    "torch.export.export",
    "torch.onnx.export",
    "torch.utils._content_store.ContentStoreReader",
    "torchvision.datasets.ImageFolder",
    "torchvision.models.resnet.resnet18",
)


@pytest.mark.slow
def test_what_was_left_out_can_be_imported_by_name() -> None:
    run(f"""
from importlib import import_module
from importlib.util import find_spec
for name in {NAMES}:
    if find_spec(name.partition(".")[0]):
        module, _, part = name.rpartition(".")
        assert callable(getattr(import_module(module), part)), name
        exec(f"import {{module}}; assert callable({{name}}); from {{module}} import {{part}}")
""")


@pytest.mark.slow
def test_algebra_models_and_optimizers_are_imported_once_they_are_used() -> None:
    """And sizes and conditions that are numbers are answered as torch would."""
    pytest.importorskip("scipy")
    run("""
def bare_of(*names):
    return [name for name in names if name in sys.modules]
assert not bare_of("sympy.core", "torchvision.models.resnet", "boto3.session", "scipy.linalg")
torch._check(True)
try:
    torch._check(False, "no")
except RuntimeError as error:
    assert str(error) == "no" and not bare_of("sympy.core")
import torch.fx.experimental.symbolic_shapes as standing
from stages.process.deferred_imports import PLAIN_RESULTS
from torch.fx.experimental.symbolic_shapes import guard_or_false, is_nested_int, sym_eq
cases = {
    "is_nested_int": [(3,)],
    "sym_and": [(True,), (True, False), (True, True)],
    "sym_eq": [(2, 3), (2, 2), ((2, 3), [2, 3]), ((2,), (2, 3)), ((2, (3,)), (2, (4,)))],
    "sym_or": [(False,), (True, False), (False, False)],
}
asked = [(name, given) for name in PLAIN_RESULTS for given in cases.get(name, [(True,), (False,)])]
said = [getattr(standing, name)(*given) for name, given in asked]
bare = torch.ones(2, 3, device="meta") / 2
assert bare.shape == (2, 3) and not bare_of("sympy.core")
import importlib.util, pkgutil, torchvision.models
assert importlib.util.find_spec("sympy.core").origin and not importlib.util.find_spec("sympy.no")
assert importlib.util.find_spec("sympy").origin == sys.modules["sympy"].__file__
assert len(list(pkgutil.iter_modules(torchvision.models.__path__))) > 20
assert not bare_of("sympy.core", "torchvision.models.resnet")
assert sys.modules["sympy"].__version__ and not bare_of("torchvision.models.resnet")
names = {}
exec("from torchvision.models import *", names)
assert names["resnet18"]() and standing.ShapeEnv() and bare_of("sympy.core")
true = sys.modules["torch.fx.experimental.symbolic_shapes"]
assert said == [getattr(true, name)(*given) for name, given in asked]
import numpy
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert not bare_of("scipy.linalg")
assert linear_sum_assignment(numpy.eye(2))[1].tolist() == [1, 0]
import scipy.optimize
assert scipy.optimize.minimize and scipy.optimize.__file__
""")


MADE: Structure = {frozenset({"torch"}): {"one.modeling_one": {"One", "Two"}}}
OTHER = '{"format": 1, "state": "STATE", "digest": "", "structure": [["torch", {"one": ["Two"]}]]}'
Defined = tuple[Callable[..., Structure], list[Any]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "transformers" / "models"
    (folder / "one").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "one" / "modeling_one.py").write_text("class One: ...")
    return folder


@pytest.fixture
def define() -> Defined:
    requests: list[Any] = []

    def defined(path: Any, prefix: str | None = None) -> Structure:
        requests.append(path)
        return MADE

    return defined, requests


def test_the_list_is_made_once_also_for_later_processes(models: Path, define: Defined) -> None:
    defined, request = define
    first = with_cached_structure(defined, __file__)
    assert first(models / "__init__.py") == MADE
    under = {frozenset({"torch"}): {"models.one.modeling_one": {"One", "Two"}}}
    assert first(models, prefix="models") == under
    assert with_cached_structure(defined, __file__)(models) == MADE
    assert len(request) == 1
    first(models)[frozenset({"torch"})]["one.modeling_one"].clear()  # each has its own
    assert first(models) == MADE


def test_other_files_have_another_list(models: Path, define: Defined, tmp_path: Path) -> None:
    defined, request = define
    with_cached_structure(defined, __file__)(models)
    os.utime(models / "one" / "modeling_one.py", ns=(1, 1))
    with_cached_structure(defined, __file__)(models)
    (models / "one" / "processing_one.py").write_text("class Processor: ...")
    with_cached_structure(defined, __file__)(models)
    assert len(request) == 3
    (source := tmp_path / "import_utils.py").write_text("")
    with_cached_structure(defined, str(source))(models)  # what makes the list is another
    assert len(request) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', "[" * 200_000, OTHER])
def test_a_damaged_list_is_made_anew(models: Path, define: Defined, damage: str) -> None:
    defined, request = define
    with_cached_structure(defined, __file__)(models)
    (path,) = (user_cache() / "imports").iterdir()
    whole = path.read_text(encoding="utf-8")
    path.write_text(damage.replace("STATE", json.loads(whole)["state"]), encoding="utf-8")
    assert with_cached_structure(defined, __file__)(models) == MADE and len(request) == 2
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(whole)


def test_without_a_cache_files_are_read(
    models: Path, define: Defined, monkeypatch: pytest.MonkeyPatch
) -> None:
    defined, request = define
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "__init__.py"))
    for count in (1, 2):
        assert with_cached_structure(defined, __file__)(models) == MADE and len(request) == count
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-that-name/cache")
    assert with_cached_structure(defined, __file__)(models) == MADE


def test_folders_of_one_model_are_asked_of_transformers(models: Path, define: Defined) -> None:
    defined, request = define
    with_cached_structure(defined, __file__)(models / "one")
    with_cached_structure(defined, __file__)(models / "one")
    assert request == [models / "one"] * 2 and not (user_cache() / "imports").exists()


@pytest.mark.slow
def test_the_list_is_transformers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.utils.import_utils import define_import_structure

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(transformers.__file__).parent / "models"
    own = define_import_structure(str(folder), prefix="models")
    for _ in range(2):
        cached = with_cached_structure(define_import_structure, __file__)
        assert cached(folder, prefix="models") == own


def test_garbage_waits_until_the_block_ends_however_it_ends() -> None:
    with pytest.raises(ImportError), gc_frozen():
        with gc_frozen():
            pass
        assert not gc.isenabled()  # an inner block does not end an outer one
        raise ImportError
    assert gc.isenabled()
