"""How people write values in a round file: 10%, 60 USD, 40GiB, 1.60 USD/h."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints


class Frozen(BaseModel):
    """Base of everything people write: immutable, unknown keys refused, field docstrings in the schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, str_strip_whitespace=True, allow_inf_nan=False
    )


def _share(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        if not match:
            raise ValueError('write a share as "10%" or 0.10')
        return float(match[1]) / 100
    return value


Share = Annotated[float, BeforeValidator(_share, json_schema_input_type=str | float), Field(ge=0, le=1)]
"""A part of a whole in [0, 1]; written as `10%` or `0.1`."""

_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", value, re.IGNORECASE)
        if not match or match[2].upper() not in _BYTES:
            raise ValueError('write a size as "40GiB"')
        return int(float(match[1]) * _BYTES[match[2].upper()])
    return value


Bytes = Annotated[
    int,
    BeforeValidator(_bytes, json_schema_input_type=str | int),
    Field(gt=0),
]
"""A size in bytes; written as `40GiB` or `512 MB`."""


class Money(Frozen):
    """An amount in one currency."""

    amount: float = Field(gt=0)
    currency: str = Field(pattern=r"^[A-Z]{3}$")

    def __str__(self) -> str:
        return f"{self.amount:.2f} {self.currency}"


def _money(suffix: str, example: str) -> Any:
    def parse(value: Any) -> Any:
        if isinstance(value, str):
            match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*([A-Z]{{3}}){suffix}\s*", value)
            if not match:
                raise ValueError(f'write it as "{example}"')
            return {"amount": float(match[1]), "currency": match[2]}
        return value

    return BeforeValidator(parse, json_schema_input_type=str)


Cost = Annotated[Money, _money("", "60 USD"), PlainSerializer(lambda m: f"{m.amount:g} {m.currency}")]
"""A cost; written as `60 USD`."""

HourlyPrice = Annotated[Money, _money("/h", "1.60 USD/h"), PlainSerializer(lambda m: f"{m.amount:g} {m.currency}/h")]
"""A price an hour; written as `1.60 USD/h`."""

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=40),
]
"""Lower-case letters, digits and dashes: also a Kubernetes name."""
