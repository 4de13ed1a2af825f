"""What to do when something else than the probe comes back: no HTTP, another server, an error on the way."""

import re
from urllib.parse import urlsplit

from sidecar.cli.doctor_http import Answer
from sidecar.cli.doctor_show import Finding, fail, printable

WRONG_URL = "give the URL at which clients reach the sidecar, with its path if it has one"
_TIMING = re.compile(r"read;dur=[0-9.]+, (.*, )?upstream;dur=[0-9.]+")
"""`Server-Timing` of an answer that a sidecar got from an upstream."""
_LOG = "see the log of what is there"


def refused(answer: Answer, url: str, *, token: bool) -> Finding:
    """About an answer that is no 200. `token`: one was sent."""
    status = answer.status
    if not status:
        return _no_answer(answer, url)
    kind = answer.fields.get("slipstream-error")
    # An answer that has to do with an upstream shows that it was taken for a request to one: by its timing,
    # or by what of it failed.
    passed_on = _TIMING.match(answer.fields.get("server-timing", ""))
    if kind is not None and kind != "no_upstream" and not kind.startswith("upstream_"):
        return _own_error(url, status, kind, token=token)
    if kind is not None or passed_on:
        fact = f"{url}: a sidecar answers, but it passes this path on to its upstream"
        remedy = (
            "what stands in front has to cut its own prefix off; nginx, with both slashes: "
            "`location /llm/ { proxy_pass http://127.0.0.1:8400/; }`"
        )
        return fail("sidecar", fact, remedy, status=status)
    if status in (301, 302, 303, 307, 308):
        target = printable(answer.fields.get("location", "")).partition("?")[0][:120] or "somewhere else"
        remedy = "clients would not follow it with a POST: give, and use, the URL that it leads to"
        return fail("sidecar", f"{url} redirects to {target} ({status})", remedy, status=status)
    if status in (401, 403, 407):
        fact = f"{url}: something in front of the sidecar asks for a credential ({status})"
        remedy = "let this path pass, or give the token that it takes with --token-file"
        return fail("sidecar", fact, remedy, status=status)
    if status in (502, 503, 504):
        fact = f"{url}: something answers in its place and cannot reach it ({status})"
        remedy = "is the sidecar running, and is it where that sends its requests? See its log"
        return fail("sidecar", fact, remedy, status=status)
    if status == 429:
        return fail("sidecar", f"{url}: something on the way limits requests (429)", "try again later")
    return stranger(answer, url)


def stranger(answer: Answer, url: str) -> Finding:
    """About an answer of something else."""
    kind = printable(answer.fields.get("content-type", "").partition(";")[0])[:60]
    what = "a web page" if "html" in kind else kind or "no type"
    fact = f"{url} is no sidecar's: it answers with {answer.status} ({what})"
    return fail("sidecar", fact, WRONG_URL, status=answer.status)


def _no_answer(answer: Answer, url: str) -> Finding:
    if answer.end == "invalid":
        tls = "" if urlsplit(url).scheme == "https" else "https:// instead of http://? Or else "
        return fail("sidecar", f"{url} does not speak HTTP/1.1", f"{tls}{WRONG_URL}")
    if answer.end is None:
        remedy = (
            f"does what stands there collect whole answers? {_LOG.capitalize()}, or give a longer --timeout"
        )
        return fail("sidecar", f"{url} takes the request, and no answer comes", remedy)
    return fail("sidecar", f"{url} closes the connection without an answer", _LOG)


def _own_error(url: str, status: int, kind: str, *, token: bool) -> Finding:
    if status == 401:
        fact = "the sidecar knows no client with this token" if token else "the sidecar asks for a token"
        remedy = "give that of one of [[clients]]: --token-file FILE, or SLIPSTREAM_TOKEN in the environment"
    elif kind == "draining":
        fact, remedy = "the sidecar is shutting down", "try again when it is back"
    elif status in (429, 503):
        fact, remedy = "the sidecar serves as many requests or probes as it may", "try again"
    elif status in (404, 405):
        fact, remedy = "the sidecar there has no probe", "install this version there"
    else:
        fact, remedy = f"the sidecar refuses: {printable(kind)[:60]} ({status})", "see its log"
    return fail("sidecar", f"{url}: {fact}", remedy, status=status, error=printable(kind)[:60])
