"""A scripted provider: speaks every dialect, paces tokens, and misbehaves on request.

For the demo, the tests and the benchmarks. It stands alone: nothing of the rest of the package is used here.
"""

from sidecar.scripted.connection import Connection
from sidecar.scripted.provider import ScriptedProvider
from sidecar.scripted.received import Received
from sidecar.scripted.script import Script

__all__ = ["Connection", "Received", "Script", "ScriptedProvider"]
