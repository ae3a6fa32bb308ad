"""Named, because packages on the path bring a module `tests` of their own."""
