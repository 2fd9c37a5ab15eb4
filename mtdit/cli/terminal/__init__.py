"""What is printed to and read from a terminal."""
