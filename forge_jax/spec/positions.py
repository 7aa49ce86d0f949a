"""Where a token stands, and how an op learns of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """Position interpolation: every frequency is divided by `factor` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicNtk:
    """NTK-aware base that grows with the sequence once that is longer than `max_len`."""

    factor: float
    max_len: int


@dataclass(frozen=True)
class Yarn:
    """NTK by parts (arXiv:2309.00071): fast features keep their frequency, slow ones are interpolated.

    `attention_factor` multiplies cos and sin; `truncate` rounds the ramp's borders to whole features.
    """

    factor: float
    original_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Llama3:
    """Wavelengths beyond original_len / low are stretched by `factor`, those below original_len / high are kept."""

    factor: float
    low: float
    high: float
    original_len: int


@dataclass(frozen=True)
class LongRope:
    """One divisor a feature pair: `short` while the sequence fits `original_len`, `long` beyond (arXiv:2402.13753).

    `attention_factor` multiplies cos and sin; `long_attention_factor` takes its place beyond, if it is another.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_len: int
    attention_factor: float
    long_attention_factor: float | None = None


@dataclass(frozen=True)
class Proportional:
    """Only the first `pairs` feature pairs rotate, at their frequencies in the whole head divided by `factor`."""

    pairs: int
    factor: float = 1.0


Scaling = Linear | DynamicNtk | Yarn | Llama3 | LongRope | Proportional


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864) on the first `dim` features of a head.

    `interleaved` pairs features (0, 1), (2, 3), ...; otherwise (0, dim/2), (1, dim/2 + 1), ... `backwards` turns the
    other way. `endless` counts angles in 2^-32 of a turn, which is as exact between any two tokens however far from the
    beginning they are; otherwise they are float32, whose rounding grows with the position.
    """

    dim: int
    theta: float = 10000.0
    interleaved: bool = False
    scaling: Scaling | None = None
    backwards: bool = False
    endless: bool = False

    @property
    def varies(self) -> bool:
        """Whether the frequencies depend on the length of the sequence, so that a cache must keep keys unrotated."""
        match self.scaling:
            case DynamicNtk():
                return True
            case LongRope(short, long, _, factor, long_factor):
                return short != long or long_factor not in (None, factor)
            case _:
                return False


@dataclass(frozen=True)
class Alibi:
    """A bias on the scores, slope times key position (arXiv:2108.12409), one slope a head, in units before `scale`.

    `rounded` computes slope times position in bfloat16, which some checkpoints were trained with.
    """

    slopes: tuple[float, ...]
    scale: float = 1.0
    rounded: bool = False


@dataclass(frozen=True)
class QueryScaling:
    """Queries grow with the position: q * (1 + beta * log(1 + floor((position + offset) / original_len)))."""

    beta: float
    original_len: int
    offset: int = 0


@dataclass(frozen=True)
class LogScaling:
    """Queries grow with the position: q * (1 + alpha * log(max(1, (position + 1) / original_len)))."""

    alpha: float
    original_len: int


@dataclass(frozen=True)
class PowerScaling:
    """Queries grow with the position: q * (1 + (position + 1) / original_len) ** power."""

    power: float
    original_len: int


@dataclass(frozen=True)
class Positions:
    """A learned table of absolute positions; position p reads row p + offset."""

    size: int
    offset: int = 0


@dataclass(frozen=True)
class Sinusoids:
    """Fixed waves in place of a table: the sines, then the cosines, of position * theta^(-2i/D) (arXiv:1706.03762).

    Position p is taken as p + offset.
    """

    theta: float = 10000.0
    offset: int = 0
