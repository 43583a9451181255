"""Data: images in memory, where they come from, and the order in which training sees them (floor 4)."""

from fewstep.data.images import Batch, ImageData, Images, to_uint8, to_unit
from fewstep.data.order import indices_of_step, seeded
from fewstep.data.prompts import Prompt, PromptSet, load_captions, load_prompts
from fewstep.data.scene_captions import Scene, Thing, parse_caption
from fewstep.data.scene_reader import Readings, read_scenes
from fewstep.data.scenes import Law, Scenes, law
from fewstep.data.sources import SOURCES, digits, hub, image_folder, load_data, parquet

__all__ = [
    "SOURCES",
    "Batch",
    "ImageData",
    "Images",
    "Law",
    "Prompt",
    "PromptSet",
    "Readings",
    "Scene",
    "Scenes",
    "Thing",
    "digits",
    "hub",
    "image_folder",
    "indices_of_step",
    "law",
    "load_captions",
    "load_data",
    "load_prompts",
    "parquet",
    "parse_caption",
    "read_scenes",
    "seeded",
    "to_uint8",
    "to_unit",
]
