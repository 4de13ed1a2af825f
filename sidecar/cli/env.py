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
    host = config.server.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    for line in exports(config, f"http://{host}:{config.server.port}"):
        print(line)


def variables(config: Config, url: str) -> dict[str, str]:
    """Name -> value. The sidecar's root stands for the upstream's URL: with `--upstream
    https://host/v1`, the `/v1` is in the upstream already."""
    upstream = config.server.upstream
    path = urlsplit(upstream).path.strip("/") if upstream else ""
    return {
        "OPENAI_BASE_URL": url if path else f"{url}/v1",
        "ANTHROPIC_BASE_URL": url,
        "GOOGLE_GEMINI_BASE_URL": url,
        "OLLAMA_HOST": url,
    }


def exports(config: Config, url: str) -> list[str]:
    """The variables as lines for a POSIX shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables(config, url).items()]
