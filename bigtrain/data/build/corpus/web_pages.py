"""The text of a web page, from the HTTP response that a crawler kept: by trafilatura (Barbaresi, ACL 2021)."""

from __future__ import annotations

import codecs
import logging
import re
import zlib
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import Any

READ_BYTES = 1 << 16
PAGES = ("text/html", "application/xhtml+xml")
PLAIN = "text/plain"
DECODERS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content encodings, and zlib's name for them. Crawlers decode a page before they keep it, most of the time."""
FALLBACK = "cp1252"
"""The encoding of a page that names none and is not UTF-8, by the HTML standard."""
LONGEST_HEADERS = 1 << 16

_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


class NotAPageError(Exception):
    """A response has no text. Its message says why, in the same words for all such responses."""


def text_of_response(response: bytes, limit: int) -> str:
    """The text of an HTTP response with a web page or a plain text.

    Args:
        response: its headers and its body, as they were sent.
        limit: the most bytes of the body after it is decoded.

    Raises:
        NotAPageError: it is no such response, is damaged or too long, or its page has no text.
    """
    from warcio.statusandheaders import StatusAndHeadersParser

    if not response.startswith(b"HTTP/"):
        raise NotAPageError("no HTTP headers")
    stream = BytesIO(response)
    try:
        headers = StatusAndHeadersParser(["HTTP/"], verify=False).parse(stream)
    except Exception:  # the library raises its own, or EOFError
        raise NotAPageError("no HTTP headers") from None
    if stream.tell() > LONGEST_HEADERS:
        raise NotAPageError("no HTTP headers")
    if headers.get_statuscode() != "200":
        raise NotAPageError("another HTTP status than 200")
    content_type = (headers.get_header("Content-Type") or "").lower()
    kind = content_type.partition(";")[0].strip()
    if kind not in (*PAGES, PLAIN):
        raise NotAPageError("another content than a web page")
    body = _body(stream, headers, limit)
    text = _decoded_page(body, content_type)
    return text if kind == PLAIN else text_of_page(text)


def text_of_page(html: str) -> str:
    """The main text of a web page. Raises NotAPageError if there is none, or the page cannot be parsed."""
    try:
        # Deduplication would compare a page with those before it, and its text would not follow from it alone.
        text: str | None = _extractor()(html, include_comments=False, favor_precision=True, deduplicate=False)
    except Exception:  # of parsers of whatever strangers wrote: any, RecursionError too
        raise NotAPageError("HTML that cannot be parsed") from None
    if not text or not text.strip():
        raise NotAPageError("no text in its HTML")
    return text


@lru_cache(maxsize=1)
def _extractor() -> Any:
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # pages without text are counted
    return trafilatura.extract


def _body(stream: BytesIO, headers: Any, limit: int) -> bytes:
    """The body without its transfer and content encodings."""
    from warcio.bufferedreaders import ChunkedDataReader

    body = stream.read()
    if (headers.get_header("Transfer-Encoding") or "").lower() == "chunked":
        with suppress(Exception):  # a crawler may have joined the parts and kept the header
            body = ChunkedDataReader(BytesIO(body), raise_exceptions=True).read()
    encoding = (headers.get_header("Content-Encoding") or "").strip().lower()
    if encoding in DECODERS:
        body = _inflated(body, DECODERS[encoding], limit)
    if len(body) > limit:
        raise NotAPageError(TOO_LONG)
    return body


TOO_LONG = "longer than max_document_bytes"


def _inflated(body: bytes, window: int, limit: int) -> bytes:
    decoder = zlib.decompressobj(window)
    try:
        inflated = decoder.decompress(body, limit + 1)
    except zlib.error:
        return body  # decoded already, by the crawler
    if len(inflated) <= limit and not decoder.eof:
        raise NotAPageError("a body that is cut off")
    return inflated


def _decoded_page(body: bytes, content_type: str) -> str:
    """The body as text, by the encoding that the headers name, or the page itself, or else by that of most pages."""
    named = _CHARSET.search(content_type) or _CHARSET.search(body[:1024].decode("latin-1"))
    if named is not None:
        try:
            if codecs.lookup(named[1]).name != "utf-8":
                return body.decode(named[1], errors="replace")
        except (LookupError, ValueError):
            pass  # no encoding that is known, or one of bytes
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("utf-8" if named else FALLBACK, errors="replace")
