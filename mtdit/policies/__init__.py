"""The policies that can be trained and exported."""
