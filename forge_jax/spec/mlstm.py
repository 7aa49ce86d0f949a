"""A memory of outer products, written to by a gate that has no upper bound."""

from dataclasses import dataclass

from forge_jax.spec.ops import Gate, Norm


@dataclass(frozen=True)
class Mlstm:
    """LSTM with a matrix for a memory (arXiv:2405.04517): a state that maps keys to values, and one of keys alone.

    A token multiplies both by the sigmoid of its forget gate and adds exp(input gate) times its key. What a query
    reads is divided by the size of what it reads of the keys, or by 1 if that is less, plus `eps` in units of the
    largest weight so far. Both gates are cap * tanh(gate / cap), one number a head, always with a bias.
    `norm` is over a head; the sigmoid of a linear map of the input then multiplies it. `bias`: of all other maps.
    """

    heads: int
    key_dim: int
    value_dim: int
    norm: Norm
    eps: float = 1e-6
    cap: float | None = None
    bias: bool = False

    @property
    def gate(self) -> Gate:
        """What multiplies the outputs of each head."""
        return Gate(bias="feature" if self.bias else None)
