"""Believable products, the same for a number on every machine: what `make seed` offers, tests search and benches read.

Product n is made from `random.Random(n)`, so the first N products are always the first N products. Objects are drawn
with weights that fall like 1/rank, as words do in any catalogue: some are everywhere, most are rare.
"""

from itertools import accumulate
from random import Random
from typing import TypedDict


class Product(TypedDict):
    """What is written of an item, as version 1 of the API takes it."""

    name: str
    description: str | None
    price: float
    in_stock: bool


# Each with the price around which its offers lie.
_OBJECTS: dict[str, float] = {
    "notebook": 9, "mug": 12, "desk lamp": 45, "backpack": 80, "kettle": 38, "umbrella": 22, "headphones": 120,
    "office chair": 210, "water bottle": 18, "kitchen knife": 55, "wall clock": 34, "bookshelf": 140, "rug": 95,
    "cutting board": 28, "wool blanket": 70, "teapot": 42, "pocket watch": 180, "compass": 25, "fountain pen": 60,
    "chess set": 48, "camping stove": 65, "telescope": 320, "sewing machine": 260, "bicycle bell": 11, "kayak": 640,
    "barometer": 110, "sextant": 250, "typewriter": 190, "accordion": 480, "unicycle": 170, "loom": 390,
    "microscope": 275, "gramophone": 410, "hourglass": 20, "weather vane": 75, "music box": 40, "spinning top": 8,
    "astrolabe": 520, "abacus": 30, "zither": 230,
}  # fmt: skip
_MATERIALS = (
    "oak", "steel", "cotton", "ceramic", "brass", "leather", "bamboo", "glass", "wool", "walnut", "copper", "linen",
    "marble", "titanium", "ebony", "mother-of-pearl",
)  # fmt: skip
_QUALITIES = (
    "classic", "compact", "hand-made", "folding", "vintage", "lightweight", "sturdy", "travel-size", "restored",
    "minimalist", "waterproof", "limited-edition", "signed", "left-handed",
)  # fmt: skip
_USES = (
    "for everyday use", "for small rooms", "for long journeys", "for the kitchen", "for the workshop",
    "for collectors", "for rainy days", "for beginners", "for a gift that lasts", "for the night sky",
)  # fmt: skip
_REMARKS = (
    "Ships in two days.", "Made in small batches.", "Cleaned and checked.", "Comes with a five-year guarantee.",
    "Slight signs of wear on one side.", "Spare parts are available.", "The box is included.", "One of a kind.",
    "Délai de livraison : une semaine.", "Farbe leicht abweichend von der Abbildung.",
)  # fmt: skip


def _falling(count: int) -> list[float]:
    """Return cumulative weights 1, 1/2, 1/3 …"""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


_NAMES = tuple(_OBJECTS)
_OBJECT_WEIGHTS = _falling(len(_NAMES))
_MATERIAL_WEIGHTS = _falling(len(_MATERIALS))
_QUALITY_WEIGHTS = _falling(len(_QUALITIES))


def product(number: int) -> Product:
    """Return product `number`, counted from 1."""
    chance = Random(number)  # noqa: S311  # chosen to be the same everywhere, not to be secret
    (thing,) = chance.choices(_NAMES, cum_weights=_OBJECT_WEIGHTS)
    (material,) = chance.choices(_MATERIALS, cum_weights=_MATERIAL_WEIGHTS)
    (quality,) = chance.choices(_QUALITIES, cum_weights=_QUALITY_WEIGHTS)
    words = [quality, material, thing] if chance.random() < 0.6 else [material, thing]
    description = None
    if chance.random() < 0.9:
        remarks = chance.sample(_REMARKS, k=chance.randint(0, 3))
        description = " ".join((f"A {quality} {thing} {chance.choice(_USES)}.", *remarks))
    price = min(max(_OBJECTS[thing] * chance.lognormvariate(0, 0.4), 0.5), 1_000_000)
    return {
        "name": " ".join(words).capitalize(),
        "description": description,
        "price": round(price, 2),
        "in_stock": chance.random() < 0.85,
    }
