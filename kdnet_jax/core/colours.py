"""Colours of regions and classes, by their place."""

from typing import Final

# Okabe and Ito's hues, light enough to stand out on grey and black.
_COLOURS: Final = (
    *("#FF6A13", "#F0E442", "#56B4E9", "#00C08B", "#E58AC0"),
    *("#FFFFFF", "#B68CFF", "#C9A227", "#7FE0FF", "#FF9E9E"),
)


def at(place: int) -> str:
    """Returns the colour of a place as #RRGGBB; after ten they repeat."""
    return _COLOURS[place % len(_COLOURS)]
