"""Data: images in memory, where they come from, and the order in which training sees them (floor 4)."""

from fewstep.data.images import Batch, ImageData, to_uint8, to_unit
from fewstep.data.order import indices_of_step, seeded
from fewstep.data.sources import SOURCES, digits, hub, image_folder, load_data, parquet

__all__ = [
    "SOURCES",
    "Batch",
    "ImageData",
    "digits",
    "hub",
    "image_folder",
    "indices_of_step",
    "load_data",
    "parquet",
    "seeded",
    "to_uint8",
    "to_unit",
]
