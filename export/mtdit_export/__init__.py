"""Exports a checkpoint as a bundle. Everything here needs torch, except the options."""
