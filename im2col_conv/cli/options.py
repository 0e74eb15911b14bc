"""Types of command line options: sizes, steps and padding as ``ic.conv`` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

__all__ = ["PADDING", "PER_AXIS", "SHAPE"]

# Older versions of click have no [] here.
if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


class _Shape(_ParamType):
    """Ints with commas between: ``1,3,5,7`` is (1, 3, 5, 7)."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._int(item, value, param, ctx) for item in str(value).split(","))

    def _int(
        self, item: str, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return int(item)
        except ValueError:
            self.fail(f"{str(value)!r} is not {self._wanted()}", param, ctx)

    def _wanted(self) -> str:
        return "ints with commas between, such as 1,3,5,7"


class _PerAxis(_Shape):
    """One int for all spatial axes, ``2``, or one each, ``2,1``."""

    name = "int or ints"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        items = super().convert(value, param, ctx)
        return items[0] if len(items) == 1 else items

    def _wanted(self) -> str:
        return "an int, or one int a spatial axis with commas between, such as 2,1"


class _Padding(_PerAxis):
    """As `_PerAxis`, or (before, after) pairs, ``1:2,0:3``, or ``same`` or ``valid``."""

    name = "padding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("same", "valid"):
            return value
        if not isinstance(value, str) or ":" not in value:
            return super().convert(value, param, ctx)
        return tuple(self._pair(item, value, param, ctx) for item in value.split(","))

    def _pair(
        self, item: str, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        before, colon, after = item.partition(":")
        # One axis may be padded alike on both sides while another is not: 1,0:3.
        first = self._int(before, value, param, ctx)
        return first, self._int(after, value, param, ctx) if colon else first

    def _wanted(self) -> str:
        return "an int, ints such as 1,0, pairs before:after such as 1:2,0:3, same or valid"


SHAPE = _Shape()
PER_AXIS = _PerAxis()
PADDING = _Padding()
