"""Downloading over HTTP, with every failure told as ours and no credentials in any message.

Importing this costs more than the whole store does otherwise, so that is done when something is fetched.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import requests
from requests import exceptions as theirs

from pytest_vmfest.errors import ImageFetchError
from pytest_vmfest.images.sparse import CHUNK_BYTES

if TYPE_CHECKING:
    from pytest_vmfest.images.sparse import SparseWriter

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0

Tell = Callable[[int, int | None], None]
E = TypeVar("E", bound=BaseException)


def fetch(url: str, target: SparseWriter, tell: Tell, *, shown: str) -> None:
    """Write what ``url`` gives into ``target``; ``tell`` is told the bytes done and, if known, their total.

    ``shown`` is what messages call the URL. Redirects are followed; the server may take 10 s to be connected
    and 60 s between any two pieces. Raises `ImageFetchError`. Nothing is tried twice.
    """
    with _translated(shown):
        response = requests.get(
            url,
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            # A body that is compressed on the way could not be compared with its announced length.
            headers={"Accept-Encoding": "identity"},
        )
    with response:
        _check_status(response, shown)
        total = _announced_length(response)
        pieces = response.iter_content(CHUNK_BYTES)
        while True:
            with _translated(shown):
                piece = next(pieces, None)
            if piece is None:
                break
            target.write(piece)
            tell(target.written, total)
        if total is not None and target.written != total:
            raise _truncated(shown, f"{target.written} of {total} bytes arrived")


def _announced_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _truncated(shown: str, how: str) -> ImageFetchError:
    return ImageFetchError(f"{shown}: the download is truncated: {how}", hint="try again")


def _stalled(shown: str) -> ImageFetchError:
    return ImageFetchError(
        f"{shown}: nothing came for {READ_TIMEOUT_S:g} s", hint="the server may be busy, try again"
    )


_STATUS_HINTS = {
    401: "the server asks for a login: put it into ~/.netrc or into the URL",
    403: "the server refuses it to you: a login may be needed, in ~/.netrc or in the URL",
    404: "check the address: the server has nothing there",
    410: "check the address: it is no longer there",
}


def _check_status(response: requests.Response, shown: str) -> None:
    code = response.status_code
    if code != 200:
        hint = _STATUS_HINTS.get(code, "the server has trouble, try again later" if code >= 500 else "")
        raise ImageFetchError(f"{shown}: HTTP {code} {response.reason or ''}".rstrip(), hint=hint)


@contextmanager
def _translated(shown: str) -> Iterator[None]:
    """Make `ImageFetchError` of what requests raises, whose own texts show the URL with its secrets."""
    try:
        yield
    except theirs.SSLError as error:
        cause = _cause(error, ssl.SSLCertVerificationError)
        reason = cause.verify_message if cause else "no secure connection could be made"
        raise ImageFetchError(
            f"{shown}: the server's certificate is not trusted: {reason}",
            hint="if it is your own authority's, name its file in REQUESTS_CA_BUNDLE",
        ) from None
    except theirs.ConnectTimeout:
        raise ImageFetchError(
            f"{shown}: no connection within {CONNECT_TIMEOUT_S:g} s",
            hint="check the address, the network, and the proxy variables",
        ) from None
    except theirs.Timeout:
        raise _stalled(shown) from None
    except theirs.ChunkedEncodingError:
        raise _truncated(shown, "the server closed the connection too early") from None
    except theirs.TooManyRedirects:
        raise ImageFetchError(f"{shown}: it redirects without end", hint="check the address") from None
    except theirs.ConnectionError as error:
        if _cause(error, TimeoutError):
            raise _stalled(shown) from None
        raise ImageFetchError(
            f"{shown}: {_connection_trouble(error)}",
            hint="check the address, the network, and the proxy variables",
        ) from None
    except (theirs.RequestException, UnicodeError) as error:
        raise ImageFetchError(
            f"{shown}: the request is not possible ({type(error).__name__})", hint="check the address"
        ) from None


def _connection_trouble(error: BaseException) -> str:
    if _cause(error, socket.gaierror):
        return "the host's name is not known"
    cause = _cause(error, ConnectionError) or _cause(error, OSError)
    return cause.strerror if cause and cause.strerror else "the connection broke"


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """The first error of the standard library's class ``kind`` among what led to ``error``."""
    while error is not None:
        if isinstance(error, kind) and type(error).__module__ in ("builtins", "socket", "ssl"):
            return error
        error = error.__cause__ or error.__context__
    return None
