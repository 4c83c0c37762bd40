"""What S3 can do beyond what s3fs offers; `fs` is an s3fs file system, and paths are `bucket/key`."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cmdist.errors import StoreDenied
from cmdist.system.store_errors import answer

_AT_ONCE = 1000  # keys of one request, S3's limit
_TOGETHER = 8  # parts of an upload at the same time
_PAGES = 20  # of a listing of uploads; what is left is for the next time
_NO_LISTS = {"NoSuchUpload", "NotImplemented", "MethodNotAllowed", "AccessDenied", "XNotImplemented"}
_LATER = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"}


def put_parts(fs: Any, path: str, content: Any, size: int, tried: Callable[[Callable[[], Any]], Any]) -> None:
    """Write a file in parts of `size` bytes, several at a time, seen together at the end; `content` is sliced.

    `tried` makes each request, again while that may help: a part that fails is sent again, and not the others.
    """
    bucket, key, _ = fs.split_path(path)
    of = {"Bucket": bucket, "Key": key}
    of["UploadId"] = tried(lambda: fs.call_s3("create_multipart_upload", **of))["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = content[(number - 1) * size : number * size]
        done = tried(lambda: fs.call_s3("upload_part", **of, PartNumber=number, Body=body))
        return {"PartNumber": number, "ETag": done["ETag"]}

    def complete() -> None:
        try:
            fs.call_s3("complete_multipart_upload", **of, MultipartUpload={"Parts": parts})
        except Exception as error:
            fs.invalidate_cache(path)
            # done by the try before, whose answer was lost
            if answer(error)[0] != "NoSuchUpload" or fs.info(path)["size"] != len(content):
                raise

    try:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            parts = list(pool.map(send, range(1, -(-len(content) // size) + 1)))
        tried(complete)
    except BaseException:
        with contextlib.suppress(Exception):  # else the next start of the run does
            fs.call_s3("abort_multipart_upload", **of)
        raise
    fs.invalidate_cache(path)


def erase(fs: Any, path: str) -> None:
    """Remove a file, or all below a folder. Raises StoreDenied with the number of those that the store keeps."""
    fs.invalidate_cache(path)
    bucket, prefix, _ = fs.split_path(path)
    assert prefix, "a whole bucket is never removed"
    keys = [fs.split_path(name)[1] for name in fs.find(path, withdirs=False)]
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


def abort_uploads(fs: Any, path: str, match: Callable[[str], bool]) -> int:
    """Abort the open multipart uploads below a folder whose paths `match` takes; how many, 0 if none are listed."""
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
            if match(f"{bucket}/{upload['Key']}"):
                with contextlib.suppress(FileNotFoundError):  # ended since
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                count += 1
        if not page.get("IsTruncated"):
            break
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    return count
