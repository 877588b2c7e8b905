"""The type of a model: the domain that it was made for."""

from enum import StrEnum

from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names


class ModelType(StrEnum):
    """The domain that a model was made for."""

    GENERIC = "generic"
    BIOMEDICAL = "biomedical"
    CLINICAL = "clinical"
    CUSTOM = "custom"

    @classmethod
    def of(cls, value: "ModelType | str") -> "ModelType":
        """Return the type for a member or its name, in upper or lower case.

        Raises:
            RequestError: There is no such type.
        """
        try:
            return cls(value.lower())
        except (ValueError, AttributeError):
            near = near_names(str(value), [str(kind) for kind in cls])
            raise RequestError(
                f"Model type {repr(value)[:80]} does not exist.{did_you_mean(near)}\n"
                f"Use one of: {', '.join(map(str, cls))}",
                value=value,
                candidates=tuple(near),
            ) from None
