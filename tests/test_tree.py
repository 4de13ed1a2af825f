"""The whole tree: lint, format, types, who imports whom, and the size of modules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"node_modules", "__pycache__", "dist", "build"}
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".json",
    ".mjs",
    ".js",
    ".ts",
    ".sh",
    ".service",
    ".socket",
    ".cfg",
    ".yml",
    ".yaml",
    ".html",
    "",
}
LONGEST = 300


def files(*folders: str) -> list[Path]:
    """What belongs to the project: all but hidden tools' folders and what is installed or built."""
    found = []
    for folder in folders or ("",):
        for path in sorted((ROOT / folder).rglob("*")):
            parts = path.relative_to(ROOT).parts
            hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
            if (
                path.is_file()
                and not hidden
                and not SKIPPED & set(parts)
                and not any(p.endswith(".egg-info") for p in parts)
            ):
                found.append(path)
    return found


def modules() -> list[Path]:
    return [path for path in files("sidecar", "plugins") if path.suffix == ".py"]


CHECKS = {
    "lint": ["ruff", "check", "--no-cache", "."],
    "format": ["ruff", "format", "--no-cache", "--check", "."],
    "types": ["mypy", "--cache-dir", "{tmp}"],
    "imports": ["lint-imports", "--no-cache"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_tree_is_clean(name, tmp_path):
    program, *arguments = [part.format(tmp=tmp_path) for part in CHECKS[name]]
    folder = Path(sys.executable).parent
    found = shutil.which(program, path=str(folder)) or shutil.which(program)
    assert found is not None, f"{program} is not installed: pip install -e '.[dev]'"
    done = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_something_to_check():
    assert len(modules()) > 30
    assert {ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "sidecar" / "config.py"} <= set(files())


def test_a_module_can_be_read_in_one_sitting():
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in modules()}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_a_module_says_what_it_owns():
    sources = {path: path.read_text(encoding="utf-8").strip() for path in modules()}
    assert [path for path, source in sources.items() if source and not source.startswith('"""')] == []


def places() -> re.Pattern[str]:
    """Paths that exist on one machine only: anybody's home, this checkout, and what lies beside it."""
    here = [ROOT, *(ROOT.parent.iterdir() if len(ROOT.parts) > 2 else ())]
    named = [re.escape(str(path)) for path in here if len(path.parts) > 2]
    return re.compile(
        r"(?<![\w./:@-])(?:" + "|".join([*named, r"/(?:(?:home|Users)/[a-z]\w*|root)"]) + r")(?![\w-])"
    )


def test_no_file_knows_where_it_was_written():
    place = places()
    assert place.search(f"see {ROOT}/notes")
    assert place.search("open(" + "/home" + "/someone/x)")
    assert not place.search("https://api.test/v1/home/someone and a/root")
    found = []
    for path in files():
        if path.suffix in TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in place.finditer(text)]
    assert found == []
