"""The parts of a machine."""

from dataclasses import dataclass

FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512vnni": "AVX-512 VNNI (int8 dot products)",
    "avxvnni": "AVX VNNI (int8 dot products)",
    "avxvnniint8": "AVX VNNI of either sign",
    "avx512bf16": "AVX-512 bf16",
    "avx512fp16": "AVX-512 fp16",
    "amxint8": "AMX int8 (matrix tiles)",
    "amxbf16": "AMX bf16 (matrix tiles)",
    "amxfp16": "AMX fp16 (matrix tiles)",
    "asimddp": "NEON dotprod (int8 dot products)",
    "asimdhp": "NEON fp16",
    "i8mm": "NEON i8mm (int8 matrix products)",
    "bf16": "NEON bf16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME (matrix tiles)",
    "sme2": "SME2",
}
"""The instruction sets that decide on kernels, by Linux's names without their underscores."""


@dataclass(frozen=True)
class Cores:
    """Cores of one kind: "performance", "efficiency" or what else the system calls it; "" where all are alike."""

    kind: str
    count: int


@dataclass(frozen=True)
class Cache:
    """Caches of one kind and size.

    holds  "data", "instructions" or "both"
    kind   of the cores it belongs to, "" where all are alike
    count  how many there are; None where the system does not tell
    """

    level: int
    holds: str
    size: int
    count: int | None = None
    kind: str = ""


@dataclass(frozen=True)
class Processor:
    """A processor as one process sees it.

    name      the chip's, as its maker writes it; "" if unknown
    features  names from ``FEATURES``, sorted
    cores     physical cores of each kind, the fastest first
    threads   logical processors of the machine
    allowed   those that this process may run on
    quota     processors' worth of time that its container grants; None without a limit
    """

    name: str
    architecture: str
    features: tuple[str, ...] = ()
    cores: tuple[Cores, ...] = ()
    threads: int | None = None
    allowed: int | None = None
    quota: float | None = None
    caches: tuple[Cache, ...] = ()
    virtual: bool = False

    def has(self, *features: str) -> bool:
        """Return whether it has any of ``features``."""
        return any(feature in self.features for feature in features)

    @property
    def apple(self) -> bool:
        """Whether it is Apple's own chip, which shares its memory with a GPU."""
        return self.name.startswith("Apple ")


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory: all of it, what is available now, and what a container is limited to; None if unknown.

    huge_pages  whether it comes in huge pages; None where that is unknown or not to be had
    """

    total: int | None = None
    available: int | None = None
    limit: int | None = None
    huge_pages: bool | None = None


@dataclass(frozen=True)
class Accelerator:
    """Something beside the processor that computes.

    kind    "cuda", "mps" (a GPU under Metal) or "neural engine"
    memory  bytes of its own; None where it shares the processor's
    unused  why nothing here can use it, or None
    """

    kind: str
    name: str
    memory: int | None = None
    capability: tuple[int, int] | None = None
    unused: str | None = None


@dataclass(frozen=True)
class Machine:
    processor: Processor
    memory: Memory
    accelerators: tuple[Accelerator, ...]


def known_features(flags: list[str]) -> tuple[str, ...]:
    """Return the features among ``flags``, however their underscores are set."""
    return tuple(sorted({flag.lower().replace("_", "") for flag in flags} & set(FEATURES)))
