"""Verses of the Bible in English and Spanish: the World English Bible and the Reina-Valera of 1909, both in the public
domain, as modules of SWORD that Debian packages, read with `pysword`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from examples.data.cache import cached

SWORD = Path("/usr/share/sword")
MODULES = "engWEB2015eb", "spaRV1909eb"
INSTALL = "apt-get install sword-text-web sword-text-sparv && pip install pysword"

_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def are_here() -> bool:
    return importlib.util.find_spec("pysword") is not None and all(
        (SWORD / "mods.d" / f"{module}.conf").exists() for module in MODULES
    )


def load(longest: int = 20) -> list[tuple[list[str], list[str]]]:
    """Pairs (English, Spanish) of tokens in lower case, none longer than this, in the order of the books."""
    pairs = cached("verses", _read)
    tokens = ((tokenize(english), tokenize(spanish)) for english, spanish in pairs)
    return [pair for pair in tokens if all(0 < len(side) <= longest for side in pair)]


def tokenize(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _read() -> list[tuple[str, str]]:
    if not are_here():
        raise ModuleNotFoundError(f"the verses come with packages: {INSTALL}")
    from pysword.modules import SwordModules

    modules = SwordModules(str(SWORD))
    modules.parse_modules()
    english, spanish = (modules.get_bible_from_module(module) for module in MODULES)
    pairs = []
    known = {book.name for books in english.get_structure().get_books().values() for book in books}
    for books in spanish.get_structure().get_books().values():
        for book in books:
            if book.name not in known:
                continue
            for chapter in range(1, book.num_chapters + 1):
                place = {"books": [book.name.lower()], "chapters": [chapter]}
                both = [list(bible.get_iter(**place, clean=False)) for bible in (english, spanish)]
                if len(both[0]) == len(both[1]):  # elsewhere the two count verses differently
                    pairs += [(_text(a), _text(b)) for a, b in zip(*both, strict=True)]
    return [pair for pair in pairs if all(pair)]


def _text(verse: str) -> str:
    """Without its marks and footnotes, which stand where a space is to be."""
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"<note.*?</note>", " ", verse)).split())
