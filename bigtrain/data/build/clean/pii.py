"""Personal information: mail and IP addresses are replaced by a mask that is always the same.

datatrove takes one of several masks in turn, so a text depends on the texts before it there, but not here.
"""

from __future__ import annotations

import ipaddress
import re

from bigtrain.config import PiiSettings
from bigtrain.data.build.clean.text import Text

# Lengths as in RFC 5321. They also limit the time for a long word without a space.
_EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w!#$%&'*+/=?^`{|}~-][\w.!#$%&'*+/=?^`{|}~-]{0,63}"
    r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z0-9-]{0,61}[a-z0-9]\b",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)


def pii(text: Text, limits: PiiSettings) -> Text:
    """Mask mail addresses and public IPv4 addresses."""
    masked = text.text
    if limits.emails and "@" in masked:
        masked = _EMAIL.sub(lambda _: limits.email_mask, masked)
    if limits.ips:
        masked = _IPV4.sub(lambda match: limits.ip_mask if _is_public(match[0]) else match[0], masked)
    return Text(masked)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
