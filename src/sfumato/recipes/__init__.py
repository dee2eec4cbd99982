"""Recipes: every setting of a training, as data, and functions that choose them well."""

from sfumato.recipes.autoencoder import AutoencoderRecipe, PreparedAutoencoder, ae
from sfumato.recipes.base import Recipe, dials, find_recipe, recipe, recipes, slug
from sfumato.recipes.build import AnyPrepared, Prepared, check_init, prepare, prepare_any, start, trainer
from sfumato.recipes.cifar10 import cifar10
from sfumato.recipes.clothing import clothing
from sfumato.recipes.digits import digits
from sfumato.recipes.emoji import emoji
from sfumato.recipes.image import image
from sfumato.recipes.load import ALIASES, load_recipe, override_all, read_recipe
from sfumato.recipes.oneshots import oneshots, sounds
from sfumato.recipes.points import points
from sfumato.recipes.shapes import shapes
from sfumato.recipes.solids import solids
from sfumato.recipes.speech import digits_speech
from sfumato.recipes.tones import tones
from sfumato.recipes.voxels import voxels

__all__ = [
    "ALIASES", "AnyPrepared", "AutoencoderRecipe", "Prepared", "PreparedAutoencoder", "Recipe", "ae", "check_init",
    "cifar10", "clothing", "dials", "digits", "digits_speech", "emoji", "find_recipe", "image", "load_recipe",
    "oneshots", "override_all", "points", "prepare", "prepare_any", "read_recipe", "recipe", "recipes", "shapes", "slug",
    "solids", "sounds", "start", "tones", "trainer", "voxels",
]  # fmt: skip
