"""What S3 can do beyond what s3fs offers; `fs` is an s3fs file system, and paths are `bucket/key`."""

import contextlib
from collections.abc import Callable
from typing import Any

from cmdist.errors import StoreDenied
from cmdist.system.store_errors import answer

_AT_ONCE = 1000  # keys of one request, S3's limit
_PAGES = 20  # of a listing of uploads; what is left is for the next time
_NO_LISTS = {"NoSuchUpload", "NotImplemented", "MethodNotAllowed", "AccessDenied", "XNotImplemented"}
_LATER = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"}


def erase(fs: Any, path: str) -> None:
    """Remove a file, or all below a folder. Raises StoreDenied with the number of those that the store keeps."""
    fs.invalidate_cache(path)
    bucket, prefix, _ = fs.split_path(path)
    assert prefix, "a whole bucket is never removed"
    keys = [fs.split_path(found)[1] for found in fs.find(path, withdirs=False)]
    refused: list[dict[str, Any]] = []
    for first in range(0, len(keys), _AT_ONCE):
        objects = [{"Key": key} for key in keys[first : first + _AT_ONCE]]
        done = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        refused += done.get("Errors", [])
    fs.invalidate_cache(path)
    if any(error.get("Code") in _LATER for error in refused):
        raise OSError(f"{len(refused)} of {len(keys)} files were not deleted: {refused[0].get('Message')}")
    if refused:
        raise StoreDenied(
            f"s3://{path}: the store refuses to delete {len(refused)} of {len(keys)} files "
            f"({refused[0].get('Code') or refused[0].get('Message')}); allow it to delete objects"
        )


def abort_uploads(fs: Any, path: str, wanted: Callable[[str], bool]) -> int:
    """Abort the open multipart uploads below a folder whose paths `wanted` takes; how many, 0 if none are listed."""
    bucket, prefix, _ = fs.split_path(path)
    more: dict[str, str] = {}
    count = 0
    for _ in range(_PAGES):
        try:
            page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
        except Exception as error:
            if answer(error)[0] in _NO_LISTS:
                return count
            raise
        for upload in page.get("Uploads", []):
            if wanted(f"{bucket}/{upload['Key']}"):
                with contextlib.suppress(FileNotFoundError):  # ended since
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                count += 1
        if not page.get("IsTruncated"):
            break
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    return count
