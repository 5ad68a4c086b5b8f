"""Edit directions in W: principal components, SeFa, files, and such as are learned from labels."""

from pti_core.directions.direction import Direction, DirectionError, make_direction
from pti_core.directions.factors import principal_components, style_factors, visible_directions

__all__ = [
    "Direction",
    "DirectionError",
    "make_direction",
    "principal_components",
    "style_factors",
    "visible_directions",
]
