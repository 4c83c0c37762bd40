"""What an error of a store means: whether the same request may succeed a moment later, and the sentence to say."""

import errno
from collections.abc import Iterator

from cmdist.errors import CmdistError, StoreDenied, StoreError, StoreMissing

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_AGAIN_CODES = {
    "BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "RequestTimeTooSkewed", "ServiceUnavailable",
    "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_AGAIN_LOCALLY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
}  # of a mounted disk; a full one is not better a moment later
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def answer(error: BaseException) -> tuple[str, int]:
    """(code, HTTP status) of the store's own answer behind an error; ('', 0) if there was none."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if type(one).__name__ in ("ClientResponseError", "HttpError", "HttpResponseError"):  # http(s), Google, Azure
            status = getattr(one, "status", None) or getattr(one, "code", None) or getattr(one, "status_code", 0)
            return "", int(status or 0)
    return "", 0


def transient(error: BaseException, remote: bool = True) -> bool:
    """Whether the same request to the store (or to a local disk) may well succeed a moment later."""
    if not remote:
        return isinstance(error, OSError) and error.errno in _AGAIN_LOCALLY
    code, status = answer(error)
    if (
        code in _AGAIN_CODES or status in _AGAIN or code == "403"
    ):  # an answer to HEAD does not say why: perhaps the clock
        return True
    if isinstance(error, (CmdistError, *_FINAL)) or 400 <= status < 500:
        return False
    if any(type(one).__name__ in _FINAL_NAMES for one in _chain(error)):
        return False
    return not isinstance(
        error, (TypeError, ValueError, LookupError, AssertionError, ImportError, NotImplementedError, AttributeError)
    )


def sentence(url: str, error: Exception, attempts: int, waited: float) -> Exception:
    """What to raise for an error of a store that is final."""
    code, _ = answer(error)
    if code == "NoSuchBucket":
        return StoreMissing(f"{url}: the bucket does not exist")
    if any(type(one).__name__ in _FINAL_NAMES for one in _chain(error)):
        return StoreDenied(f"{url}: no credentials were found ({error}); set them in the environment, e.g. AWS_PROFILE")
    if transient(error) and code != "403":
        clock = "; is this machine's clock right?" if code == "RequestTimeTooSkewed" else ""
        return StoreError(
            f"{url}: the store failed {attempts} times in {waited:.0f} s, last with {type(error).__name__}: "
            f"{error}{clock}"
        )
    if isinstance(error, PermissionError):
        return StoreDenied(
            f"{url}: the store refuses access ({code or error}); check the credentials in the "
            "environment and their rights"
        )
    return error
