"""cache.embed.runtime: the library that runs the model tells nobody of it."""

import os
import subprocess
import sys

CHILD = """
import os, sys
from pathlib import Path
from sidecar.cache import embed
from sidecar.tables import Semantic
model = embed.load(Semantic(), Path(sys.argv[1]))
model.embed(["How do I change my email address?"])
for name in os.listdir("/proc/self/fd"):
    try:
        print(os.readlink("/proc/self/fd/" + name))
    except OSError:
        pass
"""


def test_loading_and_using_the_model_opens_no_connection_and_writes_nothing(tmp_path, model_folder):
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model_folder)],
        env={**environment, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(home.rglob("*")) == []
    opened = done.stdout.splitlines()
    assert not [name for name in opened if name.startswith("socket:") or name.endswith(".db")]
