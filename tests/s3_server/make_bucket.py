"""Makes a bucket: `make_bucket.py http://127.0.0.1:7480 BUCKET`.

One signed PUT (AWS Signature Version 4), with the standard library alone, so that any
Python can run it. The keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone
from urllib.parse import urlsplit


def signed(url: str, bucket: str) -> urllib.request.Request:
    """The request that makes the bucket."""
    key = os.environ["AWS_ACCESS_KEY_ID"]
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")  # noqa: UP017 (old Pythons too)
    empty = hashlib.sha256(b"").hexdigest()
    headers = {
        "host": urlsplit(url).netloc,
        "x-amz-content-sha256": empty,
        "x-amz-date": now,
    }
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
    request = "\n".join(["PUT", f"/{bucket}", "", *lines, "", names, empty])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
    signing_key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        signing_key = hmac.new(signing_key, part.encode(), "sha256").digest()
    signature = hmac.new(signing_key, text.encode(), "sha256").hexdigest()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names},"
        f" Signature={signature}"
    )
    return urllib.request.Request(f"{url}/{bucket}", method="PUT", headers=headers)


def main() -> None:
    url, bucket = sys.argv[1:3]
    try:
        urllib.request.urlopen(signed(url, bucket), timeout=30).read()
    except urllib.error.HTTPError as error:
        answer = error.read().decode()
        if "BucketAlreadyOwnedByYou" not in answer:
            sys.exit(f"{error.code} {answer}")


if __name__ == "__main__":
    main()
