"""One worker process of `slipstream serve --workers`, as its supervisor begins it."""

import faulthandler
import os
import resource
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.cli.activation import placed
from sidecar.cli.reload import Reload, compare
from sidecar.cli.serve import run_loop, serve
from sidecar.config import Config, load
from sidecar.core.values import ConfigError
from sidecar.serving.folder import data_dir
from sidecar.stores.turn import Turn
from sidecar.telemetry.log import Level, format_of, make_logger, request_lines, stderr_writer
from sidecar.web.handover import Place
from sidecar.web.service import AdminPort
from sidecar.workers.ground import LOG_TURN, bound
from sidecar.workers.link import Link


def main(descriptor: int) -> None:
    """Serve as the supervisor at the other end of that socket says, and exit."""
    # Whoever is ended because its event loop hangs says where it did, and leaves nothing of what it knew.
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    link = Link(socket.socket(fileno=descriptor))
    order = link.order()
    place = Place(Path(order.folder), order.number, order.count)
    inherited = [socket.socket(fileno=number) for number in order.inherited]

    def read(tree: dict[str, Any] | None) -> Config:
        """The configuration of a file that holds this. Raises ConfigError."""
        return placed(load(order.flags, file=tree, called=order.file).config, inherited)

    writer = stderr_writer(Turn(place.folder / LOG_TURN))
    try:
        config = read(order.trees[0])
        for tree in order.trees[1:]:
            config = compare(config, read(tree)).config  # as those have it that were there
        level, form = Level(config.log.level), format_of(config.log.format)
        log = make_logger(writer, form, level).bind(worker=order.number)
        lines = request_lines(writer, form, level)
        serving = partial(serve, config, order.secret, log, lines, writer, AdminPort(data_dir(config)))
        sockets = inherited or [
            bound(family, tuple(address), shared=True) for family, address in order.listen
        ]

        async def run() -> int:
            # By the ways that these have anyway.
            link.listen(
                lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: os.kill(os.getpid(), signal.SIGHUP)
            )
            return await serving(
                notify=link,
                sockets=sockets,
                lasting=bool(inherited),
                reload=Reload(lambda: read(link.tree), level),
                place=place,
            )

        sys.exit(run_loop(run))
    except ConfigError as error:
        link.failed(str(error))
        sys.exit(2)
    finally:
        writer.close()
        if link.orphaned and not list(place.folder.glob("*.sock")):
            shutil.rmtree(place.folder, ignore_errors=True)  # it was the last one, and nobody else will
