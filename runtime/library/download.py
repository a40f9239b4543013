"""Download one file whose SHA-256 is known, going on with what an earlier try left."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.system.files import CHUNK
from rrt_edge.runtime.system.progress import Progress

LOCAL = ("localhost", "127.0.0.1", "::1")
LARGEST = 64 << 30  # bytes
TIMEOUT = 30.0  # seconds without a byte
TRIES = 3  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second of them; longer before the next
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:(\d+)|\*)")


def download(address: str, partial: Path, sha256: str, progress: Progress | None = None) -> None:
    """Make `partial` the whole file; a broken connection is taken up again where it broke.

    Args:
        address: one that `check_address` lets pass.
        partial: holds what came so far, and keeps it where this fails or is interrupted.
        sha256: of the whole file, in lower-case hexadecimal.
        progress: called with bytes held, bytes in all (0 where the server does not say) and "downloading".

    Raises:
        BadInputError: there is no such file, it is elsewhere and not to be used, or has another hash: `partial` is gone
            then.
        RRTEdgeError: the connection failed, or the disk has no room.
    """
    try:
        with partial.open("r+b" if partial.exists() else "w+b") as file:
            transfer = _Transfer(address, file, partial, progress)
            while not transfer.complete and transfer.digest.hexdigest() != sha256:
                transfer.go_on()
    finally:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
    if (digest := transfer.digest.hexdigest()) != sha256:
        partial.unlink(missing_ok=True)
        raise BadInputError(
            f"{shown(address)}: its SHA-256 is {digest}, not the {sha256} asked for; nothing was installed"
        )


def check_address(address: str) -> None:
    """Raise `BadInputError` where an address is neither https nor http on this machine."""
    try:
        parts = urlsplit(address)
        host, secret = parts.hostname, parts.password
    except ValueError as error:
        raise BadInputError(f"{address}: not an address ({error})") from error
    if secret is not None:
        raise BadInputError(f"{shown(address)}: a password in an address is not supported; use a signed address")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in LOCAL)):
        raise BadInputError(f"{shown(address)}: must be an https address; http is for this machine alone")


def shown(address: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_room(folder: Path, needed: int) -> None:
    """Raise `RRTEdgeError` where a disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RRTEdgeError(
            f"{folder}: {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; free some space, or set "
            "RRT_EDGE_HOME to a folder on another disk"
        )


class _Transfer:
    """One download under way: `held` bytes are in the file and in the digest."""

    def __init__(self, address: str, file: IO[bytes], partial: Path, progress: Progress | None) -> None:
        self.address, self.file, self.partial, self.progress = address, file, partial, progress
        self.complete = self.answered = False
        self.fruitless = 0  # tries in a row that brought nothing new
        self.digest, self.held = hashlib.sha256(), 0
        while piece := file.read(CHUNK):
            self._count(piece)
        self.most = self.held  # held at any time

    def go_on(self) -> None:
        """Ask for what is missing and take what comes."""
        try:
            with self._answer() as answer:
                self.answered = True
                self._take(answer)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: what cannot stand in a request
            self.fruitless = 0 if self.held > self.most else self.fruitless + 1
            self.most = max(self.most, self.held)
            why = getattr(error, "reason", None) or error
            if not self.answered:
                message = f"{shown(self.address)}: no connection ({why}); check the address and the network"
                raise RRTEdgeError(message) from error
            if self.fruitless == TRIES:
                message = f"{shown(self.address)}: the connection broke ({why}); pull again to go on from there"
                raise RRTEdgeError(message) from error
            time.sleep(PAUSE * self.fruitless)

    def _answer(self) -> Any:
        headers = {"User-Agent": "rrt-edge", "Accept-Encoding": "identity"}
        if self.held:
            headers["Range"] = f"bytes={self.held}-"
        handlers: list[urllib.request.BaseHandler] = [_SafeRedirects()]
        if urlsplit(self.address).hostname in LOCAL:
            handlers.append(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.address, headers=headers)
        return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT)

    def _take(self, answer: Any) -> None:
        whole = 0
        if answer.status == 206:
            span = _RANGE.match(answer.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != self.held:
                return self._restart()  # and ask for all of it
            whole = int(span[2] or 0)
        else:
            self._restart()
        total = whole or (self.held + answer.length if answer.length else 0)
        if total > LARGEST:
            raise BadInputError(f"{shown(self.address)}: has {total} bytes; more than {LARGEST} are no bundle")
        check_room(self.partial.parent, total - self.held)
        while piece := answer.read1(CHUNK):
            self._write(piece)
            if self.progress is not None:
                self.progress(self.held, total, "downloading")
        if self.held < total:
            raise ConnectionError("it was closed early")
        self.complete = True
        return None

    def _write(self, piece: bytes) -> None:
        if self.held + len(piece) > LARGEST:
            raise BadInputError(f"{shown(self.address)}: does not end; more than {LARGEST} bytes are no bundle")
        try:
            self.file.write(piece)
            self.file.flush()
        except OSError as error:
            raise RRTEdgeError(f"{self.partial}: cannot be written ({error}); pull again to go on") from error
        self._count(piece)

    def _count(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.held += len(piece)

    def _restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest, self.held = hashlib.sha256(), 0

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Raise the error that an answer other than the file stands for, or restart the download."""
        message = f"{shown(self.address)}: the server answered {error.code} {error.reason}"
        if error.code == 416 and self.held:  # the file is no longer than what is held, which is not it
            return self._restart()
        if error.code in (429, 500, 502, 503, 504):
            raise RRTEdgeError(f"{message}; pull again later, what came so far is kept") from error
        raise BadInputError(f"{message}; check the address") from error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that a user might have given only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
