"""One worker process of `slipstream serve --workers`, as its supervisor begins it."""

import faulthandler
import os
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path

from sidecar.cli.activation import placed
from sidecar.cli.reload import Reload
from sidecar.cli.serve import run_loop, serve
from sidecar.config import Config, load
from sidecar.core.values import ConfigError
from sidecar.serving.folder import data_dir
from sidecar.telemetry.log import Level, format_of, make_logger, request_lines, stderr_writer
from sidecar.web.handover import Place
from sidecar.web.service import AdminPort
from sidecar.workers.ground import bound
from sidecar.workers.link import Link

_LOG_TURN = "log.lock"


def main(descriptor: int) -> None:
    """Serve as the supervisor at the other end of that socket says, and exit."""
    # Whoever is ended because its event loop hangs says where it did.
    faulthandler.enable()
    link = Link(socket.socket(fileno=descriptor))
    order = link.order()
    place = Place(Path(order.folder), order.number, order.count)
    inherited = [socket.socket(fileno=number) for number in order.inherited]

    def read() -> Config:
        """The configuration as the supervisor has read it last. Raises ConfigError."""
        return placed(load(order.flags, file=link.tree).config, inherited)

    writer = stderr_writer(place.folder / _LOG_TURN)
    try:
        config = read()
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
                reload=Reload(read, level),
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
