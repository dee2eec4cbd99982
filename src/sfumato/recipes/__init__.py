"""Recipes: every setting of a training, as data, and functions that choose them well."""

from sfumato.recipes.base import Recipe, dials, find_recipe, recipe, recipes, slug
from sfumato.recipes.build import Prepared, check_init, prepare, start, trainer
from sfumato.recipes.cifar10 import cifar10
from sfumato.recipes.digits import digits
from sfumato.recipes.image import image
from sfumato.recipes.load import ALIASES, load_recipe, override_all, read_recipe
from sfumato.recipes.shapes import shapes

__all__ = [
    "ALIASES", "Prepared", "Recipe", "check_init", "cifar10", "dials", "digits", "find_recipe", "image", "load_recipe",
    "override_all", "prepare", "read_recipe", "recipe", "recipes", "shapes", "slug", "start", "trainer",
]  # fmt: skip
