"""The Feetech servo bus."""
