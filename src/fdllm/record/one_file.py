"""A record that is one JSON file of its own: whole or refused, with copies for git. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ValidationError

from fdllm import strictjson
from fdllm.outside import AbsentError, OutsideError, parse_json, read_text
from fdllm.record.atomic import write_text
from fdllm.record.summary import InvalidRecordError
from fdllm.spec import Spec, first_problem


class OneFile(Spec):
    """What a file of this kind holds."""

    def write(self, *paths: Path) -> None:
        """Write the file, and its copies.

        Raises:
            FdllmError: a place cannot be written.
        """
        text = strictjson.dumps(self.model_dump(mode="json")) + "\n"
        for path in paths:
            write_text(path, text)

    @classmethod
    def read_file(cls, path: Path, *, most: int) -> Self | None:
        """Read the file, of ``most`` bytes at most; None where there is none.

        Raises:
            InvalidRecordError: it is not of this kind.
        """
        try:
            text = read_text(path, most=most)
            parse_json(text, path)
            return cls.model_validate_json(text, strict=True)
        except AbsentError:
            return None
        except OutsideError as error:
            raise InvalidRecordError(f"{path.name} {error.wrong}") from None
        except ValidationError as error:
            raise InvalidRecordError(f"{path.name}: {first_problem(error)}") from None
