"""Installs mtdit and a bundle on other computers, over ssh."""
