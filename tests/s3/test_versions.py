from __future__ import annotations

import pytest

from kvgate.errors import InvalidArgument, NoSuchVersion
from kvgate.s3.versions import check_version


def test_there_is_one_version() -> None:
    check_version({})
    check_version({"versionId": "null", "partNumber": "1"})
    for other in ("3", "NULL", "null ", "3HL4kqtJvjVBH40Nrjfkd"):
        with pytest.raises(NoSuchVersion):
            check_version({"versionId": other})
    with pytest.raises(InvalidArgument):
        check_version({"versionId": ""})
