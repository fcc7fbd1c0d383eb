"""Choosing an installed image model by what it is, instead of by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import ImageNotFoundError
from pytest_vmfest.request import check_template

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_vmfest.specs import ImageModel

_PATTERN_SUFFIX = "_matches"


def select(models: Iterable[ImageModel], template: Mapping[str, Any], *, hint: str = "") -> ImageModel:
    """The model that ``template`` describes.

    A plain key (``os_family``) asks for that very value, a key that ends in ``_matches`` for a value that
    the regular expression matches as a whole. Of several models the one with the newest ``os_version``
    is taken, among equal versions the first by name.

    Raises `ConfigurationError` for a template that is none, and `ImageNotFoundError` that says of each model
    why it was passed over; ``hint`` is what to do then.
    """
    check_template(template, "image template")
    passed_over: list[str] = []
    fitting: list[ImageModel] = []
    for model in sorted(models, key=lambda model: model.name):
        reasons = misfits(model, template)
        if reasons:
            passed_over.append(f"{model.name}: {'; '.join(reasons)}")
        else:
            fitting.append(model)
    if fitting:
        # max takes the first of equals, and they are in the order of their names.
        return max(fitting, key=lambda model: version_key(model.os_version))
    asked = ", ".join(f"{key}={value!r}" for key, value in template.items())
    found = "".join(f"\n    {line}" for line in passed_over) or " no image is installed"
    raise ImageNotFoundError(f"no installed image has {asked}:{found}", hint=hint)


def misfits(model: ImageModel, template: Mapping[str, Any]) -> list[str]:
    """Why ``model`` is not what ``template`` asks for; nothing if it is."""
    reasons = []
    for key, wanted in template.items():
        attribute = key.removesuffix(_PATTERN_SUFFIX)
        value = getattr(model, attribute)
        if value is None:
            reasons.append(f"{attribute} is not known")
        elif attribute == key:
            if value != wanted:
                reasons.append(f"{attribute} is {value!r}, not {wanted!r}")
        elif not re.fullmatch(wanted, value):
            reasons.append(f"{attribute} is {value!r}, which {wanted!r} does not match")
    return reasons


def version_key(version: str | None) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which a newer version is greater. No version is older than any.

    >>> sorted(["12", "9", "12.10", "12.4", "12-rc1", "sid"], key=version_key)
    ['sid', '9', '12-rc1', '12', '12.4', '12.10']
    """
    if version is None:
        return ()
    parts = re.findall(r"\d+|[^\W\d_]+", version)
    # A word is older than the end, the end older than a number: 12-rc1, 12, 12.1.
    ranked = [(2, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
    return (*ranked, (1, 0, ""))
