"""Addresses of remote shards: `https://host/x-000.tar`, `http://...`, `s3://bucket/prefix/x-000.tar`.

An address never carries a credential. It stands in the process list, in the shell's history, in `run.json`, in logs
and in error messages, so `user:password@`, a signed query and a fragment are refused where a user writes them;
`leoclr.datasets.storage.credentials` says where they go instead. Whatever is printed goes through `shown`.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from leoclr.datasets.errors import DataError

REMOTE_SCHEMES = ("https", "http", "s3")
WITHOUT_CREDENTIAL = (
    "must hold no user, password, query or fragment, which would be seen in process lists and logs; put the credential "
    "into LEOCLR_HTTP_AUTH as 'https://HOST=?QUERY' or 'https://HOST=Bearer TOKEN'"
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ADDRESS = re.compile(rf"{_SCHEME.pattern}[^\s'\"]*", re.IGNORECASE)
_HIDDEN = "***"


def scheme_of(text: str) -> str:
    """What stands before `://`, in lower case; "" for a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else ""


def is_remote(text: str) -> bool:
    """Whether this names something that is fetched."""
    return scheme_of(text) in REMOTE_SCHEMES


def shown(text: str) -> str:
    """An address, or a text that was meant as one, fit to be printed: user, password, query and fragment hidden."""
    match = _SCHEME.match(text)
    if not match:
        return text
    start, rest = match[0], text[match.end() :]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.partition(":")[2]
    if "@" in rest and ("@" in authority or (port and not port.isdigit())):  # a raw `/` may stand in a password
        rest = f"{_HIDDEN}@{rest.rpartition('@')[2]}"
    return start + re.sub(r"([?#]).*", rf"\1{_HIDDEN}", rest, flags=re.DOTALL)


def carries_credential(text: str) -> bool:
    """Whether an address holds a user, a password, a query or a fragment."""
    return shown(text) != text


def redacted(text: str) -> str:
    """A longer text, such as a list of settings, with the addresses in it as `shown` gives them."""
    return _ADDRESS.sub(lambda match: shown(match[0]), text)


def check_address(text: str) -> None:
    """Raise DataError for an address that is not one, carries a credential, or cannot be a shard or an index."""
    name = shown(text)
    if carries_credential(text):
        raise DataError(f"{name}: {WITHOUT_CREDENTIAL}")
    try:
        parts = urlsplit(text)
        valid = bool(parts.hostname) and len(parts.path) > 1 and (parts.port is None or parts.scheme != "s3")
    except ValueError:
        valid = False
    if not valid or not text.isprintable() or "\\" in text:
        raise DataError(f"{name}: not an address such as https://HOST/x-000.tar or s3://BUCKET/x-000.tar")


def folder_of(address: str) -> str:
    """The address without its last part."""
    return address.rpartition("/")[0]


def name_of(address: str) -> str:
    """The last part of an address."""
    return address.rpartition("/")[2]
