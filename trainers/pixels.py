"""Lengths in pixel units of [0,1] that remember how they were written."""

from __future__ import annotations

from fractions import Fraction


class PixelValue(float):
    """A length in pixel units of [0,1] that remembers how it was written: `8/255` stays text beside its float."""

    text: str

    def __new__(cls, value: object) -> PixelValue:
        """Read a number, or text such as `8/255`. Raises ValueError for anything else."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255")
        written = value.replace(" ", "") if isinstance(value, str) else value
        try:
            number = float(Fraction(written) if isinstance(written, str) and "/" in written else written)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255") from None
        self = super().__new__(cls, number)
        self.text = getattr(value, "text", written if isinstance(written, str) else repr(number))
        return self

    def __reduce__(self) -> tuple[type[PixelValue], tuple[str]]:
        return PixelValue, (self.text,)

    def plain(self) -> str | float:
        """As it goes into a file: the text if it is a fraction, else the number."""
        return self.text if "/" in self.text else float(self)
