"""A method in a package of its own: store numbers with fewer bits."""
