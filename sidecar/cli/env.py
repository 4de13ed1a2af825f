"""`slipstream env`: the variables that make official SDKs use the sidecar."""

import shlex
from typing import Any
from urllib.parse import urlsplit

import click

from sidecar.cli.options import flags, loaded
from sidecar.config import Config


@click.command("env", short_help="print the base-URL variables as export lines")
@flags
def command(**given: Any) -> None:
    """Print the base-URL variables as export lines: eval "$(slipstream env)"."""
    config = loaded(given).config
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    scheme = "http" if config.tls.certificate is None else "https"
    for line in exports(config, reachable(config, f"{scheme}://{host}:{config.server.port}")):
        print(line)


def reachable(config: Config, url: str) -> str:
    """The URL for clients on this machine: an address that stands for all of them is none to call."""
    every = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.server.host)  # noqa: S104
    return f"{url.partition(':')[0]}://{every}:{url.rpartition(':')[2]}" if every else url


def variables(config: Config, url: str) -> dict[str, str]:
    """Name -> value, for the APIs that a request would find at the sidecar's root.

    The root stands for the upstream's URL. With `--upstream https://host/v1`, the `/v1` is in the upstream
    already, and only clients that bring none can use it.
    """
    from sidecar.serving.routes import Routes

    upstream = config.server.upstream
    if upstream and urlsplit(upstream).path.strip("/"):
        return {"OPENAI_BASE_URL": url}
    found = {
        "OPENAI_BASE_URL": (f"{url}/v1", "/v1/chat/completions"),
        "ANTHROPIC_BASE_URL": (url, "/v1/messages"),
        "GOOGLE_GEMINI_BASE_URL": (url, "/v1beta/models"),
        "OLLAMA_HOST": (url, "/api/chat"),
    }
    routes = Routes(config)
    made = {name: value for name, (value, path) in found.items() if routes.takes(path)}
    stripped = [table for table in config.upstreams if table.strip and not table.header]
    stripped = [table for table in stripped if "*" not in table.paths[0]]
    if "OPENAI_BASE_URL" not in made and stripped:
        made["OPENAI_BASE_URL"] = f"{url}{stripped[0].paths[0].rstrip('/')}/v1"
    return made


def exports(config: Config, url: str) -> list[str]:
    """The variables as lines for a POSIX shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables(config, url).items()]
