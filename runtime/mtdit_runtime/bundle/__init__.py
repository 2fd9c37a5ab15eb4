"""The exported policy as a folder: manifest, checks, publishing."""
