"""Where local models live in the data folder, and whether one is ready. Reads nothing large.

`model/NAME/` holds a tokenizer.json, the graph, and what is known of both; for the model that has a name here
also the weights, so that a newer version can build its own graph without a network. Every file comes there
by one rename, the facts last.
"""

import hashlib
import re
from pathlib import Path

import msgspec

from sidecar.tables import Semantic

DEFAULT = "all-MiniLM-L6-v2"
BUILDER = 1
"""Another number whenever the same weights give other vectors than before."""
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
POOLING = "1_Pooling/config.json"
SENTENCES = "sentence_bert_config.json"
MODULES = "modules.json"
SOURCES = (WEIGHTS, TOKENIZER, CONFIG, POOLING, SENTENCES, MODULES)
"""What decides about the vectors, in a folder of sentence-transformers. Only the first three have to be."""
GRAPH = "model.int8.onnx"
FACTS = "built.json"
INPUT = "input_ids"
"""Of the graph."""

_LOCAL = "local"
_LONGEST_FACTS = 64 << 10
"""Bytes."""
_SPARE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_CHUNK = 1 << 20

Stamp = tuple[int, int]
"""Size of a file, and when it was changed, in nanoseconds."""


class File(msgspec.Struct, frozen=True):
    """A file of a known content."""

    name: str
    size: int
    sha256: str


PINNED = (
    File(CONFIG, 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    File(TOKENIZER, 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    File(WEIGHTS, 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
)
"""The files of the default model, the smallest first: what is not them shows early."""
PINNED_TOKENS = 256
"""Tokens that the default model reads, by its sentence_bert_config.json; its pooling is the usual one."""


class Built(msgspec.Struct, frozen=True):
    """The facts."""

    builder: int
    source: str
    """SHA-256 of everything that decides about the vectors."""
    graph: str
    """SHA-256 of the graph."""
    size: int
    """Bytes of the graph."""
    tokenizer: str
    """SHA-256 of tokenizer.json."""
    tokens: int
    """The most that are read of a text."""
    origin: str | None = None
    """The folder that it was made from, where that is somebody else's."""
    stamps: dict[str, Stamp] = {}
    """Of the files there."""

    @property
    def space(self) -> str:
        """The same on all machines."""
        return f"local:{self.source[:32]}:{self.builder}"


class Place(msgspec.Struct, frozen=True):
    """A model that is ready, as far as its facts say."""

    folder: Path
    built: Built


def is_local(semantic: Semantic) -> bool:
    """Whether the embedder is a model in this process."""
    return semantic.embedder == _LOCAL


def origin(semantic: Semantic) -> Path | None:
    """The folder that is configured as the model; None where it is the default one. Raises ValueError with
    one line for people."""
    if semantic.model == DEFAULT:
        return None
    path = Path(semantic.model).expanduser()
    if "/" not in semantic.model and not path.is_dir():
        expected = f"expected {DEFAULT}, or the path of a folder with another BERT"
        raise ValueError(f"semantic.model = {semantic.model!r}: {expected}")
    return path.absolute()


def root(folder: Path) -> Path:
    """Of all models. `folder`: the data folder."""
    return folder / "model"


def name_for(source: Path, digest: str) -> str:
    """Of the folder for what is made from somebody else's."""
    return f"{_SPARE_NAME.sub('-', source.name).strip('.-') or 'model'}-{digest[:12]}"


def find(semantic: Semantic, folder: Path) -> Place | None:
    """The configured model, if it is ready. Raises ValueError as `origin` does."""
    source = origin(semantic)
    if source is None:
        candidates = [root(folder) / DEFAULT]
        stamps = {}
    else:
        candidates = places(folder)
        stamps = stamped(source)
    for place in candidates:
        built = facts(place)
        if built is None or built.builder != BUILDER or not _has(place, built):
            continue
        if source is None or (built.origin == str(source) and built.stamps == stamps):
            return Place(place, built)
    return None


def places(folder: Path) -> list[Path]:
    """The folders of all models."""
    try:
        return sorted(path for path in root(folder).iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def facts(place: Path) -> Built | None:
    """What is known of a model; None where nothing is, or nothing that can be read."""
    try:
        with (place / FACTS).open("rb") as file:
            return msgspec.json.decode(file.read(_LONGEST_FACTS), type=Built)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def stamped(source: Path) -> dict[str, Stamp]:
    """What shows that files were changed; without those that are not there."""
    found = {}
    for name in SOURCES:
        try:
            status = (source / name).stat()
        except OSError:
            continue
        found[name] = (status.st_size, status.st_mtime_ns)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            made.update(chunk)
    return made.hexdigest()


def _has(place: Path, built: Built) -> bool:
    try:
        return (place / GRAPH).stat().st_size == built.size and (place / TOKENIZER).is_file()
    except OSError:
        return False
