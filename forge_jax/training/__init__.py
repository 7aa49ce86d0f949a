"""What training adds to the pure functions of the decoder."""

from forge_jax.training.balance import balance_loss, balanced, mixtures, routing, z_loss

__all__ = ["balance_loss", "balanced", "mixtures", "routing", "z_loss"]
