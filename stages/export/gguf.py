"""Writes a checkpoint whose language half is a GGUF file, tensor by tensor, with its tokenizer.

How the file is written:

1. The weights of the text decoder and of the output head go into the GGUF file. All others go into
   safetensors files as they are loaded.
2. llama.cpp itself quantizes the kinds of few bits, from a file in the checkpoint's own type.
3. The manifest lists what is in the file. config.json comes last.

The tokenizer goes into the file if llama.cpp tokenizes as the checkpoint does:

1. The exporter looks up the kind of the vocabulary and, for byte-level BPE, what splits text into
   words.
2. It writes a file with nothing but the tokenizer. llama.cpp loads it and tokenizes lines of many
   kinds, every added token among them.
3. Only if all of them agree, the tokenizer goes into the file of the model.
"""

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer

from artifacts.errors import EnvironmentFault
from artifacts.files import HALF, replace_file, write_json
from artifacts.plurals import counted
from artifacts.schema import Part
from artifacts.store import disk_faults
from stages.export import ExportJob
from stages.export.export_plan import ExportPlan, StoredTensor, plan_export
from stages.export.quant_formats import (
    MORE_ROOM,
    as_written,
    files_of,
    form_of,
    is_made,
    read_tensor,
    write_file,
)
from stages.export.quant_formats import warm as warm_export
from stages.models.gguf import FILE, FORMAT, MANIFEST, PACKAGES
from stages.models.gguf.half import core_names, core_paths
from stages.models.gguf.header import TABLE, last_words, library
from stages.models.gguf.mapping import Change, TextMapping, mapping_of, refused
from stages.models.halves.routes import config_and_class, skeleton_of
from stages.models.hub.checkpoint import CONFIG, GENERATION, read_config, small_files
from stages.models.published import stating_as_published
from stages.models.shards.layout import (
    GO_ON,
    check_free,
    check_room,
    claimed,
    keeping_files,
    write_rest,
)
from stages.models.stored.layers import model_names
from stages.process.events import EventReporter

NAME = "tokenizer.json"
ENDS_STATED = ("eos", "eot", "eom")
"""Tokens of a file at which llama.cpp ends an answer: of a text, a turn and a message."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + ENDS
SPLITS: Mapping[tuple[str, bool], str] = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (LLAMA3.replace("{1,3}", ""), False): "qwen2",
}
"""Regular expression of a tokenizer.json, and whether words of the vocabulary need no merges → what
llama.cpp calls them."""
PROBE = (
    "The quick brown fox can't jump; it's 12345.6789 and WE'LL see, don't we?",
    "  two   spaces\tand\ttabs \n\n new  lines\r\n  at the end   ",
    "def f(x: int) -> str:\n    return f'{x!r}'  # 0x1F == 31\n\t\tpass",
    "Größe, naïve, Ελληνικά, Русский язык, עברית, العربية 123",
    "日本語のテキスト、中文字符。한국어 문장 हिन्दी ไทย",
    "😀 🏳️‍🌈 👩🏽‍🚀 ♥ ½ ² ∑ → ﬁ",
    "CamelCase snake_case kebab-case UPPER lower 3.14e-10 1,000,000 v2.0",
    "a  b   c    d     e\u00a0f\u2003g ...!!! ???",
    "<html> </s> <s> [INST] {{template}} ▁ Ġ Ċ",
    "",
    " ",
    "x",
)
"""Lines of many kinds, in composed Unicode."""


class GgufTokenizer(NamedTuple):
    """A tokenizer as GGUF states it."""

    model: str
    pre: str
    """What splits text into words."""
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    prefix: bool
    """Whether a space is put before text."""
    special: Any = None
    """The special tokens and the chat template: a SpecialVocab."""

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.prefix)
        self.special.add_to_gguf(writer, quiet=True)


def tokenizer_of(source: Path, rows: int, work: Path) -> GgufTokenizer | str:
    """Return the tokenizer of a checkpoint for an embedding of so many rows, or why it has no place
    in a GGUF file. `work`: a folder for a file that is removed again."""
    if not (source / NAME).exists():
        return f"there is no {NAME}"
    stated = json.loads((source / NAME).read_text("utf-8"))
    found = _tokenizer(stated, rows)
    if isinstance(found, str):
        return found
    found = found._replace(special=special_vocab(source, rows))
    wanted = Tokenizer.from_file(str(source / NAME))
    wanted.no_padding()
    wanted.no_truncation()
    lines = [*PROBE, *("a{0}b {0} c".format(each["content"]) for each in stated["added_tokens"])]
    for ends in (False, True):
        ids = tokenized(found, work, lines, ends)
        if isinstance(ids, str):
            return ids
        for line, made in zip(lines, ids, strict=True):
            if made != wanted.encode(line, add_special_tokens=ends).ids:
                return f"llama.cpp tokenizes {line[:20]!r} otherwise"
    return found


def special_vocab(source: Path, rows: int) -> Any:
    """Return the special tokens and the chat template of a checkpoint. llama.cpp ends an answer at
    three tokens that a file states, and at some that it knows by name; gguf's own reader takes only
    the tokenizer's end, and generation_config.json may state more."""
    special = gguf.SpecialVocab(source, n_vocab=rows)
    special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    stated, places = read_config(source, GENERATION).get("eos_token_id"), special.special_token_ids
    ends = [end for end in (stated if isinstance(stated, list) else [stated]) if type(end) is int]
    known = {places.get(place) for place in ENDS_STATED}
    free = [place for place in ENDS_STATED if place not in places]
    more = [end for end in dict.fromkeys(ends) if 0 <= end < rows and end not in known]
    places.update(zip(free, more, strict=False))
    return special


def tokenized(
    tokenizer: GgufTokenizer, work: Path, lines: Sequence[str], ends: bool
) -> list[list[int]] | str:
    """Return the tokens of lines in llama.cpp, those that start and end a text included if `ends`;
    or why it cannot load the tokenizer. The file for that is removed."""
    api, path = library(), work / f"{HALF}tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokenizer.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    last_words()
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    path.unlink()
    if not model:
        return f"llama.cpp cannot load it: {last_words()}"
    found = []
    for text in map(str.encode, lines):
        room = len(text) + 8
        ids, vocab = (ctypes.c_int32 * room)(), api.llama_model_get_vocab(model)
        count = api.llama_tokenize(vocab, text, len(text), ids, room, ends, True)
        found.append(ids[: max(0, count)])
    api.llama_model_free(model)
    return found


def _tokenizer(stated: Mapping[str, Any], rows: int) -> GgufTokenizer | str:
    """Return what is in a tokenizer.json, or why it is not mapped."""
    model = stated["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return f"its vocabulary is {model.get('type')}, not BPE"
    ids = {**model["vocab"], **{each["content"]: each["id"] for each in stated["added_tokens"]}}
    if len(set(ids.values())) != len(ids) or max(ids.values()) >= rows:
        return "its tokens are not those of the embedding"
    names = [f"[PAD{at}]" for at in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for name, at in ids.items():
        names[at], types[at] = name, int(gguf.TokenType.NORMAL)
    if len(set(names)) != rows:
        return "some of its tokens have the same name"
    for each in stated["added_tokens"]:
        kind = gguf.TokenType.CONTROL if each["special"] else gguf.TokenType.USER_DEFINED
        types[each["id"]] = int(kind)
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return _sentences(stated, names, types, pairs)
    pre = _splits(stated)
    if not pre:
        return "what splits text into words is not mapped"
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
    return GgufTokenizer("gpt2", pre, names, types, [], merges, False)


def _sentences(
    stated: Mapping[str, Any], names: list[str], types: list[int], pairs: Sequence[tuple[str, ...]]
) -> GgufTokenizer | str:
    """Return what is in a vocabulary of SentencePiece. Its tokenizer.json has merges in the order
    of scores, so a token's score is the place of its first merge."""
    text = json.dumps([stated.get("normalizer"), stated.get("pre_tokenizer")])
    if "Regex" in text or "Precompiled" in text:
        return "its text is normalized in ways that are not mapped"
    places: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        places.setdefault("".join(pair), place)
    scores = [-float(places.get(name, len(pairs))) for name in names]
    unknown = stated["model"].get("unk_token")
    for at, name in enumerate(names):
        if len(name) == 6 and name.startswith("<0x"):
            types[at] = int(gguf.TokenType.BYTE)
        elif name == unknown:
            types[at] = int(gguf.TokenType.UNKNOWN)
        elif types[at] == gguf.TokenType.USER_DEFINED:
            names[at] = name.replace("▁", " ")
    prefix = "Prepend" in text or ("Metaspace" in text and '"never"' not in text)
    return GgufTokenizer("llama", "default", names, types, scores, [], prefix)


def _splits(stated: Mapping[str, Any]) -> str:
    """Return what llama.cpp calls that which splits text into words; empty if it is not mapped."""
    given = stated.get("pre_tokenizer") or {}
    *before, level = given.get("pretokenizers") or [given]
    by_regex = level.get("use_regex", True)
    known = (stated.get("normalizer") or {"type": "NFC"}) == {"type": "NFC"}
    if not known or level.get("type") != "ByteLevel" or level.get("add_prefix_space"):
        return ""
    if not before or before == [{"type": "Digits", "individual_digits": True}]:
        return ("smollm" if before else "gpt-2") if by_regex else ""
    first = before[0]
    pattern = (first.get("pattern") or {}).get("Regex", "")
    if len(before) > 1 or by_regex or first.get("behavior") != "Isolated" or first.get("invert"):
        return ""
    return SPLITS.get((pattern, bool(stated["model"].get("ignore_merges"))), "")


PARTS: tuple[Part, ...] = ("language",)
FILE_TYPES: Mapping[str, gguf.LlamaFileType] = {
    "gguf-f32": gguf.LlamaFileType.ALL_F32,
    "gguf-f16": gguf.LlamaFileType.MOSTLY_F16,
    "gguf-bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "gguf-q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "gguf-q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "gguf-q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
"""Kind of an export → what its file states of the tensors' types."""
DIRECT = {torch.float32: "gguf-f32", torch.float16: "gguf-f16", torch.bfloat16: "gguf-bf16"}
"""Type of a checkpoint → kind of the same bits. The kinds that are not here llama.cpp quantizes
from one that is."""
F32 = gguf.GGMLQuantizationType.F32


class CoreTensor(NamedTuple):
    """A tensor of the text decoder or of the output head."""

    stored: StoredTensor
    name: str
    """Its name in the GGUF file."""
    change: Change
    """What changes its values."""


class GgufPlan(NamedTuple):
    """What goes where."""

    mapping: TextMapping
    core: tuple[CoreTensor, ...]
    rest: ExportPlan
    """The tensors of everything else."""

    @property
    def rows(self) -> int:
        """Return the rows of the embedding table."""
        return int(next(t for t in self.core if t.name == TABLE).stored.shape[0])


def plan_gguf(folder: Path, trusted: bool) -> GgufPlan:
    """Plan the GGUF file of a checkpoint. Raises UsageError for a model that is not mapped."""
    config, cls = config_and_class(folder, trusted)
    mapping = mapping_of(config, str(folder))
    plan = plan_export(folder, PARTS, trusted)
    skeleton = skeleton_of(config, cls)
    decoder, head = core_paths(skeleton)
    names = core_names(skeleton, mapping)
    core, rest, heads = [], [], []
    paths = model_names(skeleton, [tensor.name for tensor in plan.tensors])
    for tensor, path in zip(plan.tensors, paths, strict=True):
        if path is None or not path.startswith((f"{decoder}.", f"{head}.")):
            rest.append(tensor)
        elif path == f"{head}.weight" and mapping.made.tied:
            heads.append(tensor)
        elif (name := names.get(path)) is not None:
            core.append(CoreTensor(tensor, name, mapping.change_of(path)))
        else:
            raise refused(str(folder), f"{path} has no place in it")
    for tensor in heads:  # llama.cpp has no place for a head of its own
        (table,) = (each.stored for each in core if each.name == TABLE)
        if not torch.equal(read_tensor(tensor), read_tensor(table)):
            raise refused(str(folder), "its output head is not its embedding table")
    if missing := sorted(path for path in names.keys() - paths if path.startswith(f"{decoder}.")):
        more, first = counted(len(missing), "tensor"), missing[0].removeprefix(f"{decoder}.")
        raise refused(str(folder), f"it stores {more} in another form, such as {first}")
    kept = tuple(replace(tensor, module="") for tensor in rest)  # not quantized
    return GgufPlan(mapping, tuple(core), replace(plan, tensors=kept))


def warm(job: ExportJob) -> None:
    """Import what the model's class and llama.cpp need before memory is counted."""
    warm_export(job)
    library()


def export(job: ExportJob, report: EventReporter) -> None:
    """Write a checkpoint with a GGUF file. Raises PenstockError."""
    source, folder = Path(job.model), Path(job.folder)
    plan, form = plan_gguf(source, job.trust_remote_code), form_of(job)
    small = small_files(source)
    files = files_of(plan.rest, form, job.shard_bytes)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        left = [file for file in files if not is_made(folder, file, plan.rest, form)]
        there = len(files) - len(left) + (folder / MANIFEST).exists()
        report.total(len(files) + 1 - there)
        report.note(files=len(files) + 1, there=there)
        check_room(folder, left, MORE_ROOM)
        with disk_faults(folder), keeping_files():
            for file in left:
                write_file(folder, file, plan.rest, form, job.files.check)
                report.item(file.name, label=file.name)
            if not (folder / MANIFEST).exists():
                _write_file(job, plan, folder)
                report.item(FILE, label=FILE)
            small[CONFIG] = stating_as_published(small[CONFIG], job.as_published)
            job.files.check()
            write_rest(folder, [as_written(folder / file.name) for file in files], small)


def _write_file(job: ExportJob, plan: GgufPlan, folder: Path) -> None:
    """Write the GGUF file and its manifest. A killed process leaves files that the next removes."""
    whole, made = folder / f"{HALF}{FILE}", folder / f"{HALF}few-bits-{FILE}"
    direct = job.kind in DIRECT.values()
    kind = job.kind if direct else DIRECT.get(plan.rest.dtype, "gguf-f32")
    parameters = sum(torch.Size(tensor.stored.shape).numel() for tensor in plan.core)
    each = (4 if kind == "gguf-f32" else 2) + (not direct)
    check_free(folder, parameters * each, MORE_ROOM)
    ordered = "its rotary positions are those of images and videos, after the order of tokens"
    tokenizer: GgufTokenizer | str = ordered
    if not plan.mapping.made.by_order:
        tokenizer = tokenizer_of(Path(job.model), plan.rows, folder)
    try:
        _write(whole, plan, kind, tokenizer)
        if not direct:
            _quantize(whole, made, job.kind)
            made.replace(whole)
        with whole.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        job.files.check()
        size = whole.stat().st_size
        replace_file(whole, folder / FILE)
    finally:
        for path in (whole, made):
            path.unlink(missing_ok=True)
    found = {"kind": job.kind, "sha256": digest, "bytes": size, "parameters": parameters}
    by = {name: version(name) for name in PACKAGES}
    more = {"architecture": plan.mapping.architecture, "made_by": by, **plan.mapping.dimensions}
    more["penstock_only"] = tokenizer if isinstance(tokenizer, str) else ""
    write_json(folder / MANIFEST, {"format": FORMAT, **found, **more})


def _write(path: Path, plan: GgufPlan, kind: str, tokenizer: GgufTokenizer | str) -> None:
    """Write a GGUF file with matrices of a kind in DIRECT; vectors are in 32 bit."""
    mapping, matrix = plan.mapping, gguf.GGMLQuantizationType[kind.removeprefix("gguf-").upper()]
    writer = gguf.GGUFWriter(path, mapping.architecture)
    mapping.add_metadata(writer, plan.rows)
    if isinstance(tokenizer, str):
        writer.add_description(f"Language half for Penstock only: {tokenizer}")
        writer.add_tokenizer_model("none")
    else:
        writer.add_description("Language half, written by Penstock")
        tokenizer.add_to(writer)
    writer.add_file_type(FILE_TYPES[kind])
    kinds = {}
    for tensor in plan.core:
        shape = tensor.change(torch.empty(tensor.stored.shape, device="meta")).shape
        kinds[tensor.name] = own = matrix if len(tensor.stored.shape) == 2 else F32
        size = shape.numel() * (4 if own == F32 else 2)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=own)
    added = mapping.added()
    for name, values in added.items():
        writer.add_tensor_info(name, values.shape, np.dtype(np.float32), values.numel() * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan.core:
        writer.write_tensor_data(_numbers(tensor, kinds[tensor.name]))
    for values in added.values():
        writer.write_tensor_data(values.numpy())
    writer.close()


def _numbers(tensor: CoreTensor, kind: Any) -> Any:
    found = tensor.change(read_tensor(tensor.stored)).float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16:
        return found.astype(np.float16)
    return found if kind == F32 else gguf.quants.quantize(found, kind)


def _quantize(source: Path, path: Path, kind: str) -> None:
    """Quantize a GGUF file by llama.cpp. Raises EnvironmentFault."""
    api = library()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], torch.get_num_threads()
    last_words()
    paths = (os.fsencode(source), os.fsencode(path))
    if api.llama_model_quantize(*paths, ctypes.byref(parameters)):
        raise EnvironmentFault(
            f"llama.cpp could not quantize to {kind}: {last_words()}", hint=GO_ON
        )
