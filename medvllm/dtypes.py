"""The dtypes of tensors: how safetensors headers, torch and callers name them, and their size."""

# The kind in a safetensors header -> its name in torch, and the bytes of one element.
SAFETENSORS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

# The dtypes in which a model may be loaded. Weights of these kinds are converted to the one that is asked for.
LOADABLE = ("float32", "bfloat16", "float16", "float64")
FLOATING = {kind: name for kind, (name, _) in SAFETENSORS.items() if name in LOADABLE}
SIZE_BYTES = dict(SAFETENSORS.values())

# The dtypes whose numbers float32 holds exactly.
WIDENED = ("bfloat16", "float16")

_SHORT = {"float": "float32", "fp32": "float32", "bf16": "bfloat16", "half": "float16", "fp16": "float16"}
_SHORT |= {"double": "float64"}


def loadable_dtype(text: str) -> str | None:
    """Return the name of a dtype that a model may be loaded in, such as "bfloat16" for "bf16"; None for another."""
    name = text.removeprefix("torch.").lower()
    name = _SHORT.get(name, name)
    return name if name in LOADABLE else None
