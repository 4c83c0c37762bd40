"""URLs before anything prints, stores or passes them on: those that hold secrets or run commands are refused, and in
texts of others what may be secret is masked.
"""

import re
from urllib.parse import urlsplit

from cmdist.errors import CmdistError

# where whoever stands before '@' is a key, even without a password
_NO_USERS = ("s3", "s3a", "gs", "gcs", "http", "https", "hf")
_PLAIN = ("file", "local", "memory", "sqlite")  # local, so that '@', '?' and '#' are parts of names
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/'\"]*@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"?#]*[?#])[^\s'\")\]}>]+")


def refuse_secrets(url: str) -> None:
    """Refuse a URL that runs commands, names no place, or holds a password or a signature,
    which would end in logs and files. Raises CmdistError.
    """
    if url.startswith("pipe:"):
        raise CmdistError(
            f"{masked(url)}: 'pipe:' URLs run shell commands and are refused; give a path or a URL such as "
            "s3://bucket/folder"
        )
    if "://" not in url:
        return
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in (*_NO_USERS, "memory") and not rest.strip("/"):
        raise CmdistError(f"{url} names no place; give one, e.g. {scheme}://bucket/folder (an empty variable?)")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    secret = re.search(r"[?&#]", rest) or (at and (":" in user or scheme in _NO_USERS))
    if secret and scheme not in _PLAIN:
        try:
            place = urlsplit(f"{scheme}://{host}{rest[len(authority) :]}").path
        except ValueError:
            place = ""
        raise CmdistError(
            f"{scheme}://***{host}{place}: a URL with a user name, password or query string is refused, "
            "since URLs are logged; "
            "credentials come from the environment or the provider's own files (e.g. AWS_ACCESS_KEY_ID, ~/.aws, "
            "MLFLOW_TRACKING_PASSWORD)"
        )


def masked(text: str) -> str:
    """A text in which the users, passwords and query strings of URLs are ***."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
