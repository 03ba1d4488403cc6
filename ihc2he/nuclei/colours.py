"""One colour per type of nucleus, the same in every picture and file."""

from collections.abc import Sequence

# Okabe and Ito (2008), which colour-blind readers can tell apart; those that stand out on H&E come first.
_PALETTE = ((213, 94, 0), (0, 158, 115), (0, 114, 178), (240, 228, 66), (86, 180, 233), (230, 159, 0), (204, 121, 167))
_UNKNOWN = (150, 255, 0)  # stands out on both stains
# Of what was found, of the same palette as the types; shapes tell them apart as well.
MATCHED, MISSED, INVENTED = _PALETTE[1], _PALETTE[5], _PALETTE[2]


def colour_of(kind: int) -> tuple[int, int, int]:
    """Return the RGB colour of a type; 0 is unknown, and colours repeat after the seventh.

    >>> colour_of(1), colour_of(0)
    ((213, 94, 0), (150, 255, 0))
    """
    return _PALETTE[(kind - 1) % len(_PALETTE)] if kind else _UNKNOWN


def hex_of(colour: tuple[int, int, int]) -> str:
    """Return an RGB colour in the notation of web pages and figures.

    >>> hex_of((213, 94, 0))
    '#d55e00'
    """
    return "#" + bytes(colour).hex()


def name_of(kind: int, classes: Sequence[str]) -> str:
    """Return the name of a type; `classes` has those from 1 upwards, and 0 is unknown.

    >>> name_of(2, ["epithelium", "stroma"]), name_of(0, ["epithelium", "stroma"])
    ('stroma', 'unknown')
    """
    return classes[kind - 1] if kind else "unknown"
