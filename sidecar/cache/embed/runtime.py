"""onnxruntime, kept to itself.

Its wheels for Linux (1.31 was looked at) hold a client that tells Microsoft how the library is used: it opens
a database in ~/.cache when it is imported, and connections to mobile.events.data.microsoft.com after that.
Nothing of a sidecar goes anywhere but where its operator sends it, so that is turned off before the import;
the call that the library has for it would come too late.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
