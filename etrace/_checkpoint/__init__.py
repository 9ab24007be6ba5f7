from ._description import (
    check_description as check_description,
    describe as describe,
)
from ._file import restore as restore, save as save
