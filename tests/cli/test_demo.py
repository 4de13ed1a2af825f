"""`slipstream demo`: every scene does what it shows, on a machine without a key or a network."""

import os
import subprocess
import sys

from sidecar.cli.scenes import SCENES


def test_every_scene_does_what_it_should(tmp_path, model_folder):
    command = [sys.executable, "-m", "sidecar", "demo"]
    environment = {**os.environ, "STATE_DIRECTORY": str(model_folder)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert f"All {len(SCENES)} scenes did what they should." in done.stdout
    assert done.stdout.count("✓") == len(SCENES)
    assert all(title in done.stdout for title in SCENES)
    assert list(tmp_path.iterdir()) == []
