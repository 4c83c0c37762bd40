"""Elements of HTML and SVG that escape by construction: what is not Markup is text, whoever made it."""

from collections.abc import Iterable

from markupsafe import Markup

_VOID = {"br", "img", "source", "wbr"}


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element around `content`. A content or attribute that is not Markup is escaped; of an attribute's name a last
    underscore is dropped and others become hyphens (`class_`, `data_name`), and those that are None are left out.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.removesuffix("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    opening = Markup("<{}{}>").format(name, given)
    return opening if name in _VOID else opening + join(content) + Markup("</{}>").format(name)


def join(parts: Iterable[str], between: str = "") -> Markup:
    """The parts one after the other, those escaped that are not Markup."""
    return Markup.escape(between).join(parts)
