"""From observations to action chunks."""
