"""Passwords in addresses of tracking stores: never shown, and kept only in files that nobody else can read."""

import re

_IN_ADDRESS = re.compile(r"(://[^/@:\s]*):\S*@")  # a password can have an @, too: the last one ends it
_IN_QUERY = re.compile(r"([?&;]\w*(?:password|passwd|pwd)=)[^&;\s'\"]+", re.IGNORECASE)


def hide_password(text: str) -> str:
    """Return a tracking URI, or a message that contains one, without its password."""
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))


def has_password(text: str) -> bool:
    """Return whether there is a password in a tracking URI, or in a text that contains one."""
    return hide_password(text) != text
