"""Leaves out of the reference what Python, not the package, says about an object."""

from typing import Any

import griffe


class Tidy(griffe.Extension):
    """Imported objects inherit docstrings; these two are never of interest."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """A generated `__init__` has the docstring of `object.__init__`."""
        if func.docstring and func.docstring.value == object.__init__.__doc__:
            func.docstring = None

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """A field's default has the docstring of its type; fields are arguments."""
        if "property" not in attr.labels:
            attr.docstring = None
