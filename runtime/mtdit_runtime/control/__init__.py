"""The control loop and what it is made of."""
